//! Ranks that are processes: the same losses and answers as one process, whatever happens to one of them happens to all.
//! Runs where there is an `mpirun`; skips itself elsewhere, saying so, unless `L2D_REQUIRE_MPI` is set.
#![cfg(all(unix, feature = "mpi"))]

mod common;

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{arguments, assert_alike, checkpoints, metrics, problems, timeless, tiny};

/// `mpirun` with as many ranks as asked for, however few cores there are; `None` where there is none.
fn mpirun() -> Option<Command> {
    let known = Command::new("mpirun").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if known.is_err() {
        assert!(std::env::var_os("L2D_REQUIRE_MPI").is_none(), "no mpirun, and one is required");
        eprintln!("skipped: no mpirun on this machine");
        return None;
    }
    let mut command = Command::new("mpirun");
    // Loopback alone; as root, as in a container.
    command.args(["--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "--mca", "btl_tcp_if_include", "lo"]);
    command.env_remove("RUST_LOG").env("RAYON_NUM_THREADS", "1");
    Some(command)
}

fn l2d() -> std::path::PathBuf {
    assert_cmd::cargo::cargo_bin("l2d")
}

fn on_ranks(count: usize, arguments: &[String]) -> Option<Output> {
    let mut command = mpirun()?;
    command.args(["-np", &count.to_string()]).arg(l2d()).args(arguments);
    Some(command.output().expect("started"))
}

fn alone(arguments: &[String]) -> Output {
    Command::new(l2d()).args(arguments).output().expect("started")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn ranks_train_as_one_process_does() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let one = at.join("one");
    let output = alone(&arguments(at, &one, &["ema_decay=0.5"]));
    assert!(output.status.success(), "{}", said(&output));
    for ranks in [2, 4] {
        let out = at.join(ranks.to_string());
        let mut arguments = arguments(at, &out, &["ema_decay=0.5"]);
        arguments.extend(["--ranks".to_owned(), ranks.to_string()]);
        let Some(output) = on_ranks(ranks, &arguments) else { return };
        assert!(output.status.success(), "{}", said(&output));
        assert_eq!(said(&output).matches("wrote").count(), 1, "one rank speaks: {}", said(&output));
        assert_alike(&timeless(&out), &timeless(&one));
        assert_eq!(checkpoints(&out), checkpoints(&one));
    }
}

#[test]
fn the_death_of_a_rank_ends_the_job_and_all_go_on_from_the_checkpoint() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let (whole, out) = (at.join("whole"), at.join("killed"));
    let Some(output) = on_ranks(2, &arguments(at, &whole, &[])) else { return };
    assert!(output.status.success(), "{}", said(&output));

    let mut command = mpirun().expect("there was one");
    command.args(["-np", "2"]).arg(l2d()).args(arguments(at, &out, &[]));
    let mut job = command.stderr(Stdio::null()).stdout(Stdio::null()).spawn().expect("started");
    let begun = Instant::now();
    while checkpoints(&out).is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(120), "no checkpoint came");
        assert!(job.try_wait().expect("asked").is_none(), "it ended before it could be killed");
        std::thread::sleep(Duration::from_millis(1));
    }
    kill_rank(1, &out);
    let status = job.wait().expect("ended");
    assert!(!status.success(), "the job went on without a rank");
    let steps = metrics(&out).last().map(|row| row["step"].as_u64().expect("a step")).expect("some steps");
    assert!(steps < 14, "it had finished");

    let mut arguments = arguments(at, &out, &[]);
    arguments.push("--resume".into());
    let output = on_ranks(2, &arguments).expect("there was an mpirun");
    assert!(output.status.success(), "{}", said(&output));
    assert_alike(&timeless(&out), &timeless(&whole));
}

/// Kills the process that is that rank of the job which writes to `out`.
fn kill_rank(rank: usize, out: &Path) {
    let (out, rank) = (out.display().to_string(), format!("OMPI_COMM_WORLD_RANK={rank}"));
    for entry in std::fs::read_dir("/proc").expect("processes").flatten() {
        let read = |file: &str| {
            let bytes = std::fs::read(entry.path().join(file)).unwrap_or_default();
            bytes.split(|&byte| byte == 0).map(|part| String::from_utf8_lossy(part).into_owned()).collect::<Vec<_>>()
        };
        if read("cmdline").contains(&out) && read("environ").contains(&rank) {
            let pid = entry.file_name().to_string_lossy().into_owned();
            assert!(Command::new("kill").args(["-9", &pid]).status().expect("kill").success());
            return;
        }
    }
    panic!("no such rank");
}

#[test]
fn all_save_and_stop_when_the_job_is_called_off() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("run");
    let Some(mut command) = mpirun() else { return };
    // Time to save: by default a second after it was asked to stop a rank is killed.
    command.args(["--mca", "odls_base_sigkill_timeout", "6"]);
    let mut endless = arguments(folder.path(), &out, &["validate_every=0"]);
    let steps = endless.iter().position(|argument| argument == "--steps").expect("there");
    endless[steps + 1] = "100000".into();
    command.args(["-np", "2"]).arg(l2d()).args(endless);
    let job = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().expect("started");
    let begun = Instant::now();
    while metrics(&out).len() < 3 {
        assert!(begun.elapsed() < Duration::from_secs(120), "no step came");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(Command::new("kill").args(["-INT", &job.id().to_string()]).status().expect("kill").success());
    let output = job.wait_with_output().expect("ended");
    assert!(!output.status.success() && said(&output).contains("go on with the same command"), "{}", said(&output));
    let last = metrics(&out).last().map(|row| row["step"].as_u64().expect("a step")).expect("some steps");
    assert_eq!(checkpoints(&out).last(), Some(&format!("step-{last:08}")));
}

/// What a job says that must fail, and must not hang.
fn ended(mut command: Command) -> String {
    let mut job = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("started");
    let begun = Instant::now();
    while job.try_wait().expect("asked").is_none() {
        if begun.elapsed() > Duration::from_secs(60) {
            job.kill().expect("killed");
            panic!("it hangs: {}", said(&job.wait_with_output().expect("ended")));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = job.wait_with_output().expect("ended");
    assert!(!output.status.success(), "{}", said(&output));
    said(&output)
}

/// The tiny model with one matrix of its third layer zeroed.
fn changed_base(folder: &Path) {
    std::fs::create_dir(folder).expect("a folder");
    for file in std::fs::read_dir(tiny()).expect("the tiny model").flatten() {
        std::fs::copy(file.path(), folder.join(file.file_name())).expect("copied");
    }
    let path = folder.join("model.safetensors");
    let mut bytes = std::fs::read(&path).expect("read");
    let header = u64::from_le_bytes(bytes[..8].try_into().expect("eight")) as usize;
    let tensors: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).expect("a header");
    let place = &tensors["model.layers.2.mlp.gate_proj.weight"]["data_offsets"];
    let at = |end: usize| 8 + header + place[end].as_u64().expect("a place") as usize;
    bytes[at(0)..at(1)].fill(0);
    std::fs::write(&path, bytes).expect("written");
}

#[test]
fn unequal_ranks_and_missing_ones_are_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let out = at.join("run");
    let Some(mut command) = mpirun() else { return };
    let (first, mut second) = (arguments(at, &out, &[]), arguments(at, &out, &[]));
    second.extend(["--seed".to_owned(), "9".to_owned()]);
    command.args(["-np", "1"]).arg(l2d()).args(first).arg(":").args(["-np", "1"]).arg(l2d()).args(&second);
    let output = command.output().expect("started");
    assert!(!output.status.success());
    let text = said(&output);
    assert!(text.contains("rank 1 differs from rank 0 in its settings: `\"seed\":9` there"), "{text}");
    assert_eq!(text.matches("error:").count(), 1, "{text}");

    // Other examples under the same name: a node that sees another file.
    let other = at.join("other");
    std::fs::create_dir(&other).expect("a folder");
    problems(&other.join("data.jsonl"), 41);
    let mut command = mpirun().expect("there was one");
    let named = |folder: &Path| -> Vec<String> {
        let same = ["--data".to_owned(), "data.jsonl".to_owned()];
        let mut arguments = arguments(folder, &out, &[]);
        let place = arguments.iter().position(|argument| argument == "--data").expect("there");
        arguments.splice(place..place + 2, same);
        arguments
    };
    command.args(["-np", "1", "-wdir"]).arg(at).arg(l2d()).args(named(at));
    command.args([":", "-np", "1", "-wdir"]).arg(&other).arg(l2d()).args(named(&other));
    let output = command.output().expect("started");
    let text = said(&output);
    assert!(!output.status.success() && text.contains("differs from rank 0 in its training data"), "{text}");

    // What one of them alone would refuse, or expects otherwise, is heard by all: nobody waits for ever.
    let apart = |one: [&str; 2], other: [&str; 2]| -> String {
        let of = |[flag, value]: [&str; 2]| -> Vec<String> {
            let mut arguments = arguments(at, &out, &[]);
            match arguments.iter().position(|argument| argument == flag) {
                Some(place) => arguments[place + 1] = value.to_owned(),
                None => arguments.extend([flag.to_owned(), value.to_owned()]),
            }
            arguments
        };
        let mut command = mpirun().expect("there was one");
        command.args(["-np", "1"]).arg(l2d()).args(of(one));
        command.args([":", "-np", "1"]).arg(l2d()).args(of(other));
        ended(command)
    };
    let text = apart(["--batch-size", "4"], ["--batch-size", "1"]);
    assert!(text.contains("`\"batch_size\":1` there, `\"batch_size\":4` on rank 0"), "{text}");
    let text = apart(["--ranks", "2"], ["--ranks", "3"]);
    assert!(text.contains("--ranks 3: there are 2"), "{text}");
    // One layer in the middle of the base, which no adapter's fingerprint looks at.
    let base = at.join("base");
    changed_base(&base);
    let text = apart(["--model", &tiny().display().to_string()], ["--model", &base.display().to_string()]);
    assert!(text.contains("rank 1 differs from rank 0 in its frozen weights"), "{text}");

    let mut expected = arguments(at, &out, &[]);
    expected.extend(["--ranks".to_owned(), "3".to_owned()]);
    let output = on_ranks(2, &expected).expect("there was an mpirun");
    assert!(!output.status.success() && said(&output).contains("--ranks 3: there are 2"), "{}", said(&output));
    let mut absent = arguments(at, &out, &[]);
    let model = absent.iter().position(|argument| argument == "--model").expect("there");
    absent[model + 1] = "/no/such/model".into();
    let output = on_ranks(2, &absent).expect("there was an mpirun");
    let text = said(&output);
    assert!(!output.status.success() && text.contains("/no/such/model"), "{text}");
    assert_eq!(text.matches("error:").count(), 1, "{text}");
}

#[test]
fn ranks_share_an_evaluation() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    problems(&at.join("test.jsonl"), 7);
    let eval = |out: &str| -> Vec<String> {
        let text = |path: &Path| path.display().to_string();
        let flags = ["eval", "--tasks", "arithmetic", "--max-tokens", "40", "--steps", "1", "--seeds", "3,4"];
        let paths = [("--model", text(&tiny())), ("--data", text(at)), ("--out", text(&at.join(out)))];
        let paths = paths.into_iter().flat_map(|(flag, path)| [flag.to_owned(), path]);
        flags.map(String::from).into_iter().chain(paths).collect()
    };
    let Some(output) = on_ranks(3, &eval("three")) else { return };
    assert!(output.status.success(), "{}", said(&output));
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(table.matches("7 of 7 rows asked").count(), 1, "one table of all rows: {table}");
    let output = alone(&eval("one"));
    assert!(output.status.success(), "{}", said(&output));
    let report = |out: &str| -> serde_json::Value {
        let path = at.join(out).join("arithmetic.json");
        serde_json::from_slice(&std::fs::read(path).expect("written")).expect("json")
    };
    for run in 0..2 {
        assert_eq!(report("three")["runs"][run]["metrics"], report("one")["runs"][run]["metrics"]);
    }
    // Finished answers are found again.
    let output = on_ranks(3, &eval("three")).expect("there was an mpirun");
    assert!(output.status.success() && !said(&output).contains("is there already"), "{}", said(&output));
    // By another number of ranks as well.
    let output = on_ranks(2, &eval("three")).expect("there was an mpirun");
    assert!(output.status.success(), "{}", said(&output));
    let answered_again = std::fs::read_to_string(at.join("three/ranks/1-of-2/arithmetic.samples.jsonl"));
    assert_eq!(answered_again.expect("opened"), "");
    assert_eq!(report("three")["runs"][1]["metrics"], report("one")["runs"][1]["metrics"]);
    // What the folder held before stays, and so does whose it is.
    let mut reseeded = eval("one");
    let seeds = reseeded.iter().position(|argument| argument == "--seeds").expect("there");
    reseeded[seeds + 1] = "5".into();
    let output = on_ranks(2, &reseeded).expect("there was an mpirun");
    assert!(output.status.success(), "{}", said(&output));
    let journal = std::fs::read_to_string(at.join("one/arithmetic.samples.jsonl")).expect("written");
    // An answer that was scored later has a second line.
    let key = |line: &str| serde_json::from_str::<serde_json::Value>(line).expect("a record")["key"].to_string();
    let keys: std::collections::BTreeSet<String> = journal.lines().map(key).collect();
    assert_eq!(keys.len(), 3 * 7, "seeds 3 and 4, and now 5");
    let mut few = eval("few");
    few.extend(["--limit".to_owned(), "1".to_owned()]);
    let output = on_ranks(2, &few).expect("there was an mpirun");
    assert!(
        !output.status.success() && said(&output).contains("2 ranks are more than there are rows"),
        "{}",
        said(&output)
    );

    // A rank each for the devices named, and one that cannot begin keeps nobody waiting.
    let mut devices = eval("devices");
    devices.splice(0..1, ["--devices", "flex:0-1", "eval"].map(String::from));
    let output = on_ranks(2, &devices).expect("there was an mpirun");
    assert!(output.status.success(), "{}", said(&output));
    let output = alone(&devices);
    assert!(!output.status.success() && said(&output).contains("computes on one"), "{}", said(&output));
    let mut command = mpirun().expect("there was one");
    let mut lacking = eval("lacking");
    let data = lacking.iter().position(|argument| argument == "--data").expect("there");
    lacking[data + 1] = "/no/such/folder".into();
    command.args(["-np", "1"]).arg(l2d()).args(eval("lacking")).args([":", "-np", "1"]).arg(l2d()).args(lacking);
    let text = ended(command);
    assert!(text.contains("/no/such/folder"), "{text}");
    assert!(!at.join("lacking/ranks/1-of-2/arithmetic.samples.jsonl").exists(), "nobody has begun");

    let mut colder = eval("lacking");
    colder.extend(["--temperature", "0.3"].map(String::from));
    let mut command = mpirun().expect("there was one");
    command.args(["-np", "1"]).arg(l2d()).args(eval("lacking")).args([":", "-np", "1"]).arg(l2d()).args(colder);
    let text = ended(command);
    assert!(text.contains("differs from rank 0 in its evaluation: `\"temperature\":0.3"), "{text}");

    let mut sharded = eval("three");
    sharded.extend(["--shard".to_owned(), "1/2".to_owned()]);
    let output = on_ranks(2, &sharded).expect("there was an mpirun");
    assert!(!output.status.success() && said(&output).contains("--shard"), "{}", said(&output));
}
