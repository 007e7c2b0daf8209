//! Ordinary programs: right ones pass, wrong ones say why, and the published solutions of HumanEval and MBPP are right.

#[path = "../common/mod.rs"]
mod common;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use common::{failure, launcher, passes, run, sandbox};
use l2d_sandbox::{Error, Launcher, Layers, Limits, Mode, Sandbox, Verdict};
use libtest_mimic::Failed;
use serde_json::Value;

type Test = Result<(), Failed>;

fn right_programs_pass() -> Test {
    for program in [
        "",
        "assert sorted([2, 1]) == [1, 2]",
        "import collections, datetime, decimal, fractions, functools, hashlib, heapq, itertools, json, math, random, re, string\n\
         assert hashlib.md5(b'a').hexdigest().startswith('0cc1')",
        "from typing import List\ndef f(x: List[int]) -> int:\n    return len(x)\nassert f([1]) == 1",
        "import sys\nsys.stdout = None\nsys.stderr = None",
        "print('ä', '\\ud800'.encode('utf-8', 'replace'))",
        "import threading\nt = threading.Thread(target=lambda: None)\nt.start()\nt.join()",
        "with open('note', 'w') as f: f.write('x')\nassert open('note').read() == 'x'",
        "import tempfile\nwith tempfile.TemporaryFile() as f: f.write(b'x')",
        "class A:\n    pass\nimport copy\ncopy.deepcopy(A())",
        "try:\n    input()\nexcept EOFError:\n    pass\nelse:\n    raise AssertionError",
        "# coding: of-another-world\nassert True",
        "AssertionError = KeyError = Exception = None\n__builtins__ = {}",
        "if __name__ == '__main__':\n    raise AssertionError('run as a script')",
    ] {
        passes(program);
    }
    let long = format!("x = 0\n{}assert x == 60000\n", "x += 1  # padding\n".repeat(60000));
    assert!(long.len() > 1 << 20);
    passes(&long);
    Ok(())
}

fn wrong_programs_say_why() -> Test {
    for (program, expected) in [
        ("assert 1 == 2", "AssertionError"),
        ("assert 1 == 2, 'one is not two'", "AssertionError: one is not two"),
        ("def f(:", "SyntaxError: "),
        ("  x = 1", "IndentationError: "),
        ("x = y", "NameError: name 'y' is not defined"),
        ("raise ValueError('a\\nb')", "ValueError: a\nb"),
        ("import numpy_of_another_machine", "ModuleNotFoundError: "),
        ("import sys\nsys.exit('bye')", "SystemExit: bye"),
        ("def f(): return f()\nf()", "RecursionError: "),
        ("import os\nos._exit(3)", "it left with exit code 3"),
        ("import os\nos._exit(86)", "it left with exit code 86"),
        ("class E(Exception):\n    def __str__(self): raise ValueError\nraise E", "E"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    ] {
        let error = failure(program);
        assert!(error.starts_with(expected), "{program}: {error}");
    }
    let outcome = run("import os\nos.write(1, b'\\xff\\xfe said')\nassert False");
    assert!(
        outcome.output.contains("said") && outcome.output.contains("assert False")
            || outcome.output.contains("AssertionError"),
        "{}",
        outcome.output
    );
    Ok(())
}

fn programs_run_beside_each_other() -> Test {
    let cell = sandbox(Limits { wall: Duration::from_secs(20), ..Limits::default() });
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..16)
            .map(|i| {
                let cell = &cell;
                scope.spawn(move || cell.run(&format!("x = {i}\nassert x % 2 == 0")).expect("run").verdict)
            })
            .collect();
        for (i, thread) in threads.into_iter().enumerate() {
            let passed = thread.join().expect("no panic") == Verdict::Passed;
            assert_eq!(passed, i % 2 == 0, "{i}");
        }
    });
    Ok(())
}

fn time_and_memory_are_told() -> Test {
    let outcome = run("import time\ntime.sleep(0.2)\nx = sum(i for i in range(3000000))");
    assert_eq!(outcome.verdict, Verdict::Passed);
    assert!(outcome.wall > Duration::from_millis(400) && outcome.cpu > Duration::from_millis(100), "{outcome:?}");
    assert!(outcome.cpu < outcome.wall + Duration::from_millis(200), "{outcome:?}");
    Ok(())
}

fn what_is_missing_is_named() -> Test {
    let nowhere = Launcher { program: PathBuf::from("/no/such/program"), args: Vec::new() };
    let error = Sandbox::new(Mode::Required, Limits::default(), nowhere, None).expect_err("no launcher");
    assert!(matches!(&error, Error::Launch { .. }) && error.to_string().contains("/no/such/program"), "{error}");
    let python = Some(Path::new("/no/such/python"));
    let error = Sandbox::new(Mode::Required, Limits::default(), launcher(), python).expect_err("no python");
    assert!(matches!(&error, Error::Python(_)) && error.to_string().contains("/no/such/python"), "{error}");
    let long = Limits { wall: Duration::MAX, ..Limits::default() };
    let error = Sandbox::new(Mode::Required, long, launcher(), None).expect_err("too long");
    assert_eq!(error.to_string(), "a program's time is at most 24 hours");
    let deaf = Launcher { program: PathBuf::from("/bin/true"), args: Vec::new() };
    let error = Sandbox::new(Mode::Required, Limits::default(), deaf, None).expect_err("no builder");
    assert!(matches!(&error, Error::Broken(_)), "{error}");
    assert_eq!("best-effort".parse::<Mode>().expect("a mode"), Mode::BestEffort);
    assert_eq!(
        "some".parse::<Mode>().expect_err("no mode").to_string(),
        "no sandbox mode `some` (there is required, best-effort, off)"
    );
    Ok(())
}

/// A virtual environment's Python is that environment's, not the one it was made with.
fn a_virtual_environment_is_entered() -> Test {
    let folder = tempfile::tempdir()?;
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let place = folder.path().join("environment");
    // Root's own, first in its PATH, would be closed to nobody.
    let system = Some("/usr/bin/python3").filter(|path| Path::new(path).exists()).unwrap_or("python3");
    let made = std::process::Command::new(system).args(["-m", "venv", "--without-pip"]).arg(&place).output()?;
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let packages = std::fs::read_dir(place.join("lib"))?.next().expect("a version")?.path().join("site-packages");
    std::fs::write(packages.join("of_the_environment.py"), "x = 1")?;
    let limits = Limits { wall: Duration::from_secs(20), cpu: Duration::from_secs(20), ..Limits::default() };
    let cell = Sandbox::new(Mode::Required, limits, launcher(), Some(&place.join("bin/python3")))?;
    let outcome = cell.run("import of_the_environment\nassert of_the_environment.x == 1")?;
    assert_eq!(outcome.verdict, Verdict::Passed, "{}", outcome.output);
    Ok(())
}

fn off_is_a_clock_and_limits_alone() -> Test {
    let limits = Limits { wall: Duration::from_secs(8), cpu: Duration::from_secs(2), ..Limits::default() };
    let cell = Sandbox::new(Mode::Off, limits, launcher(), None)?;
    assert_eq!(*cell.layers(), Layers::NONE);
    assert_eq!(cell.run("open('/etc/passwd').read()")?.verdict, Verdict::Passed);
    assert_eq!(cell.run("assert False")?.verdict, Verdict::Failed { error: "AssertionError".to_owned() });
    assert_eq!(cell.run("while True: pass")?.verdict, Verdict::TimedOut);
    assert_eq!(cell.run("x = bytearray(100 << 30)")?.verdict, Verdict::OutOfMemory);
    assert_eq!(
        cell.run("import os; os._exit(0)")?.verdict,
        Verdict::Failed { error: "it left with exit code 0".to_owned() }
    );
    // What leaves its parent is found and ended.
    let mark = format!("orphan-{}", std::process::id());
    let program = format!(
        "import os, sys, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        \
         os.execv(sys.executable, [sys.executable, '-c', 'import time; time.sleep(600)', '{mark}'])\n    os._exit(0)\ntime.sleep(0.5)"
    );
    assert_eq!(cell.run(&program)?.verdict, Verdict::Passed);
    let processes = std::fs::read_dir("/proc")?.flatten();
    let lines = processes.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    assert_eq!(lines.filter(|line| String::from_utf8_lossy(line).contains(&mark)).count(), 0);
    Ok(())
}

/// The rows of a published file; `None`, saying so, where `L2D_DATA` names no folder that has it.
fn rows(file: &str) -> Option<Vec<Value>> {
    let Some(folder) = std::env::var_os("L2D_DATA") else {
        println!("skipped: L2D_DATA names no folder of data sets");
        return None;
    };
    let path = Path::new(&folder).join(file);
    let mut text = String::new();
    let file = std::fs::File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    flate2::read::GzDecoder::new(file).read_to_string(&mut text).expect("text");
    Some(text.lines().map(|line| serde_json::from_str(line).expect("a row")).collect())
}

/// Which of some programs pass, in their order, two at a time.
fn verdicts(programs: &[String]) -> Vec<Verdict> {
    let cell = sandbox(Limits { wall: Duration::from_secs(15), cpu: Duration::from_secs(12), ..Limits::default() });
    let next = std::sync::atomic::AtomicUsize::new(0);
    let found: Vec<_> = programs.iter().map(|_| std::sync::OnceLock::new()).collect();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let place = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    let Some(program) = programs.get(place) else { return };
                    let verdict = cell.run(program).unwrap_or_else(|error| panic!("{error}")).verdict;
                    found[place].set(verdict).expect("once");
                }
            });
        }
    });
    found.into_iter().map(|verdict| verdict.into_inner().expect("run")).collect()
}

fn humaneval(solution: impl Fn(&Value) -> String) -> Option<Vec<String>> {
    let text = |row: &Value, key: &str| row[key].as_str().expect("a text").to_owned();
    let rows = rows("openai__openai_humaneval/openai_humaneval/test.jsonl.gz")?;
    let program = |row: &Value| {
        let (test, entry) = (text(row, "test"), text(row, "entry_point"));
        format!("{}{}\n{test}\ncheck({entry})", text(row, "prompt"), solution(row))
    };
    Some(rows.iter().map(program).collect())
}

fn mbpp(code: impl Fn(&str) -> String) -> Option<Vec<String>> {
    let mut programs = Vec::new();
    for split in ["prompt", "test", "validation", "train"] {
        for row in rows(&format!("google-research-datasets__mbpp/full/{split}.jsonl.gz"))? {
            let text = |value: &Value| value.as_str().expect("a text").replace("\r\n", "\n");
            let tests: Vec<String> = row["test_list"].as_array().expect("tests").iter().map(text).collect();
            programs.push(format!(
                "{}\n{}\n{}",
                code(&text(&row["code"])),
                text(&row["test_setup_code"]),
                tests.join("\n")
            ));
        }
    }
    Some(programs)
}

fn all_pass(programs: &[String], count: usize) {
    assert_eq!(programs.len(), count);
    for (place, verdict) in verdicts(programs).into_iter().enumerate() {
        assert_eq!(verdict, Verdict::Passed, "{place}: {}", programs[place]);
    }
}

fn every_solution_of_humaneval_passes() -> Test {
    if let Some(programs) = humaneval(|row| row["canonical_solution"].as_str().expect("a text").to_owned()) {
        all_pass(&programs, 164);
    }
    Ok(())
}

fn every_solution_of_mbpp_passes() -> Test {
    if let Some(programs) = mbpp(str::to_owned) {
        all_pass(&programs, 974);
    }
    Ok(())
}

/// Bodies that return nothing.
fn mutants_of_humaneval_fail() -> Test {
    if let Some(programs) = humaneval(|_| "    return None\n".to_owned()) {
        let passed: Vec<usize> = passing(&programs);
        assert!(passed.is_empty(), "{passed:?} pass without a solution");
    }
    Ok(())
}

/// Functions whose every result is replaced by an object that equals nothing.
fn mutants_of_mbpp_fail() -> Test {
    let mutate = |code: &str| {
        let names: Vec<&str> = code
            .lines()
            .filter_map(|line| line.strip_prefix("def "))
            .filter_map(|rest| rest.split('(').next())
            .map(str::trim)
            .collect();
        let replaced = names.iter().map(|name| format!("{name} = lambda *a, **k: object()\n"));
        format!("{code}\n{}", replaced.collect::<String>())
    };
    if let Some(programs) = mbpp(mutate) {
        let passed = passing(&programs);
        assert!(passed.is_empty(), "{} of {} pass without a solution: {passed:?}", passed.len(), programs.len());
    }
    Ok(())
}

fn passing(programs: &[String]) -> Vec<usize> {
    let verdicts = verdicts(programs);
    (0..programs.len()).filter(|&place| verdicts[place] == Verdict::Passed).collect()
}

pub(crate) fn main() -> ExitCode {
    common::main(vec![
        ("right_programs_pass", right_programs_pass),
        ("wrong_programs_say_why", wrong_programs_say_why),
        ("programs_run_beside_each_other", programs_run_beside_each_other),
        ("time_and_memory_are_told", time_and_memory_are_told),
        ("what_is_missing_is_named", what_is_missing_is_named),
        ("a_virtual_environment_is_entered", a_virtual_environment_is_entered),
        ("off_is_a_clock_and_limits_alone", off_is_a_clock_and_limits_alone),
        ("every_solution_of_humaneval_passes", every_solution_of_humaneval_passes),
        ("every_solution_of_mbpp_passes", every_solution_of_mbpp_passes),
        ("mutants_of_humaneval_fail", mutants_of_humaneval_fail),
        ("mutants_of_mbpp_fail", mutants_of_mbpp_fail),
    ])
}
