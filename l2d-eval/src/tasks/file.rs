//! Tasks of one's own, from a TOML file: how a row becomes a question, and how an answer is judged.

use std::path::{Path, PathBuf};

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, UndefinedBehavior};
use regex::Regex;
use serde::Deserialize;

use crate::error::{Error, Result};
use crate::extract::canonical_number;
use crate::journal::hash;
use crate::latex::{Value, same_value};
use crate::rows::{DataSet, Row};
use crate::task::{LikelihoodQuestion, Metric, Problem, Profile, Score, Scores, Task, class};

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Spec {
    /// The task's name in results.
    name: String,
    version: u32,
    data: DataSpec,
    /// The split that is evaluated.
    #[serde(default = "test")]
    split: String,
    /// The split the shots come from.
    #[serde(default = "train")]
    shot_split: String,
    #[serde(default)]
    shots: usize,
    #[serde(default = "usual_tokens")]
    max_new_tokens: usize,
    #[serde(default)]
    stop: Vec<String>,
    /// The guidance class of its rows.
    class: Option<String>,
    /// Rows the split should have.
    rows: Option<usize>,
    /// Template of what the user asks.
    question: String,
    /// Template of the right answer.
    answer: String,
    /// Template of what the assistant says in a shot; the answer where it is not given.
    solution: Option<String>,
    metrics: Vec<MetricSpec>,
    likelihood: Option<LikelihoodSpec>,
}

/// A data set on the hub's layout, or files beside the task's own.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct DataSpec {
    /// `owner/name/config`.
    set: Option<String>,
    /// Folder with `SPLIT.jsonl`, `SPLIT.jsonl.gz` or `SPLIT.parquet`, relative to the task's file.
    folder: Option<PathBuf>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct MetricSpec {
    name: String,
    #[serde(default)]
    description: String,
    #[serde(default = "exact")]
    profile: Profile,
    /// A regular expression; its first group, else all of it, is the answer. The whole completion where it is not given.
    extract: Option<String>,
    /// Which of several matches.
    #[serde(default)]
    take: Take,
    #[serde(default)]
    compare: Compare,
    #[serde(default)]
    ignore_case: bool,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Take {
    #[default]
    First,
    Last,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Compare {
    /// Equal texts, white space around them aside.
    #[default]
    Text,
    /// Equal numbers.
    Number,
    /// Equal mathematical values, as MATH is compared.
    Math,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct LikelihoodSpec {
    /// Template of what comes before the options; it may not end with a space.
    context: String,
    /// The column that lists the options' texts.
    options: String,
    /// Template of the right option's place, from 0.
    index: String,
}

fn test() -> String {
    "test".to_owned()
}

fn train() -> String {
    "train".to_owned()
}

fn usual_tokens() -> usize {
    256
}

fn exact() -> Profile {
    Profile::Exact
}

/// A task from a TOML file.
pub struct FileTask {
    path: PathBuf,
    digest: String,
    spec: Spec,
    data_set: Option<DataSet>,
    templates: Environment<'static>,
    metrics: Vec<Metric>,
    patterns: Vec<Option<Regex>>,
    class: &'static str,
}

impl FileTask {
    /// Reads and checks a task's file.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::TaskFile`] that says what is wrong and where.
    pub fn open(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::io(path, source))?;
        Self::parse(path, &text)
    }

    fn parse(path: &Path, text: &str) -> Result<Self> {
        let bad = |reason: String| Error::TaskFile { path: path.to_path_buf(), reason };
        let spec: Spec = toml::from_str(text).map_err(|error| bad(error.to_string()))?;
        if spec.metrics.is_empty() {
            return Err(bad("`metrics`: a task needs one at least".to_owned()));
        }
        if spec.name.is_empty() || spec.name.contains(['/', '\\', ',', ' ']) {
            return Err(bad(format!("`name`: `{}` is no name for files and the command line", spec.name)));
        }
        if super::NAMES.contains(&&*spec.name) || spec.name.ends_with("_likelihood") {
            let reason =
                "built-in tasks, or their log-likelihoods, have that name: their answers would be taken for yours";
            return Err(bad(format!("`name`: `{}`: {reason}", spec.name)));
        }
        let data_set = match (&spec.data.set, &spec.data.folder) {
            (Some(set), None) => {
                let parts: Vec<String> = set.split('/').map(str::to_owned).collect();
                let [owner, name, config] = <[String; 3]>::try_from(parts)
                    .map_err(|_| bad(format!("`data.set`: `{set}` is not OWNER/NAME/CONFIG")))?;
                Some(DataSet { owner: owner.into(), name: name.into(), config: config.into() })
            }
            (None, Some(_)) => None,
            _ => return Err(bad("`data`: give either `set` or `folder`".to_owned())),
        };
        let mut templates = Environment::new();
        templates.set_undefined_behavior(UndefinedBehavior::Strict);
        // Python's methods of strings and lists, as in the harness's own templates.
        templates.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        // A template means every character it has: MBPP's prompts, for one, end with a newline.
        let syntax = SyntaxConfig::builder().keep_trailing_newline(true).build();
        templates.set_syntax(syntax.map_err(|error| bad(error.to_string()))?);
        let solution = spec.solution.as_ref().unwrap_or(&spec.answer);
        let mut all = vec![("question", &spec.question), ("answer", &spec.answer), ("solution", solution)];
        if let Some(likelihood) = &spec.likelihood {
            all.extend([("likelihood.context", &likelihood.context), ("likelihood.index", &likelihood.index)]);
        }
        for (name, source) in all {
            let added = templates.add_template_owned(name, source.clone());
            added.map_err(|error| bad(format!("`{name}` is no template: {error}")))?;
        }
        for (place, metric) in spec.metrics.iter().enumerate() {
            if metric.name.is_empty() || metric.name.contains([',', '\n']) {
                return Err(bad(format!("`metrics.name`: `{}` is no name for a metric", metric.name)));
            }
            if spec.metrics[..place].iter().any(|other| other.name == metric.name) {
                return Err(bad(format!("`metrics`: two are named `{}`", metric.name)));
            }
        }
        let mut patterns = Vec::new();
        for metric in &spec.metrics {
            let pattern = metric.extract.as_deref().map(Regex::new).transpose();
            patterns.push(pattern.map_err(|error| bad(format!("`metrics.extract` of `{}`: {error}", metric.name)))?);
        }
        let metrics = spec.metrics.iter().map(|metric| Metric {
            name: metric.name.clone().into(),
            profile: metric.profile,
            description: metric.description.clone().into(),
            harness_key: None,
        });
        let classes = [class::MATH, class::CODING, class::GENERAL];
        let class = match spec.class.as_deref() {
            None => class::GENERAL,
            Some(name) => classes
                .into_iter()
                .find(|class| *class == name)
                .ok_or_else(|| bad(format!("`class`: `{name}` is none of {}", classes.join(", "))))?,
        };
        let digest = hash(text.as_bytes());
        Ok(Self {
            path: path.to_path_buf(),
            digest,
            metrics: metrics.collect(),
            data_set,
            templates,
            patterns,
            class,
            spec,
        })
    }

    fn render(&self, template: &str, row: &Row) -> Result<String> {
        let bad = |error: minijinja::Error| Error::TaskFile {
            path: self.path.clone(),
            reason: format!("`{template}` on {}: {error}", row.origin()),
        };
        self.templates
            .get_template(template)
            .and_then(|found| found.render(minijinja::value::Serde(row.columns())))
            .map_err(bad)
    }

    fn likelihood_of(&self, spec: &LikelihoodSpec, row: &Row) -> Result<(String, Vec<String>, usize)> {
        let options: Vec<String> = row.texts(&spec.options)?.into_iter().map(str::to_owned).collect();
        let text = self.render("likelihood.index", row)?;
        let index = text.trim().parse().ok().filter(|index| *index < options.len());
        let index = index.ok_or_else(|| Error::TaskFile {
            path: self.path.clone(),
            reason: format!("`likelihood.index` on {}: `{text}` is none of {} options", row.origin(), options.len()),
        })?;
        Ok((self.render("likelihood.context", row)?, options, index))
    }
}

impl MetricSpec {
    fn judge(&self, pattern: Option<&Regex>, expected: &str, completion: &str) -> Score {
        let extracted = match pattern {
            None => Some(completion.trim().to_owned()),
            Some(pattern) => {
                let mut found = pattern.captures_iter(completion);
                let found = match self.take {
                    Take::First => found.next(),
                    Take::Last => found.last(),
                };
                found.and_then(|found| found.get(1).or(found.get(0)).map(|text| text.as_str().trim().to_owned()))
            }
        };
        let correct = extracted.as_deref().is_some_and(|found| self.same(found, expected.trim()));
        Score { extracted, correct }
    }

    fn same(&self, a: &str, b: &str) -> bool {
        match self.compare {
            Compare::Text if self.ignore_case => a.to_lowercase() == b.to_lowercase(),
            Compare::Text => a == b,
            Compare::Number => canonical_number(a).is_some_and(|a| Some(a) == canonical_number(b)),
            Compare::Math => same_value(&Value::read(a), &Value::read(b)),
        }
    }
}

impl Task for FileTask {
    fn name(&self) -> &str {
        &self.spec.name
    }

    fn version(&self) -> u32 {
        self.spec.version
    }

    fn data_set(&self) -> Option<DataSet> {
        self.data_set.clone()
    }

    fn folder(&self) -> Option<PathBuf> {
        let folder = self.spec.data.folder.as_ref()?;
        Some(self.path.parent().unwrap_or(Path::new("")).join(folder))
    }

    fn file_digest(&self) -> Option<&str> {
        Some(&self.digest)
    }

    fn split(&self) -> &str {
        &self.spec.split
    }

    fn shot_split(&self) -> &str {
        &self.spec.shot_split
    }

    fn shots(&self) -> usize {
        self.spec.shots
    }

    fn set_shots(&mut self, shots: usize) -> Result<()> {
        self.spec.shots = shots;
        Ok(())
    }

    fn leaves_out_shots(&self) -> bool {
        self.spec.split == self.spec.shot_split
    }

    fn official_rows(&self) -> Option<usize> {
        self.spec.rows
    }

    fn max_new_tokens(&self) -> usize {
        self.spec.max_new_tokens
    }

    fn set_max_new_tokens(&mut self, tokens: usize) {
        self.spec.max_new_tokens = tokens;
    }

    fn stop_strings(&self) -> Vec<String> {
        self.spec.stop.clone()
    }

    fn metrics(&self) -> &[Metric] {
        &self.metrics
    }

    /// The template's question; the solution is what a shot says. The answer is kept as the only label.
    fn problem(&self, row: &Row) -> Result<Problem> {
        let answer = self.render("answer", row)?;
        let numeric = self.spec.metrics.iter().find(|metric| matches!(metric.compare, Compare::Number));
        // No completion could be right. A row without an answer is left out and counted, as with every task.
        if let Some(metric) = numeric
            && !answer.trim().is_empty()
            && canonical_number(answer.trim()).is_none()
        {
            let reason = format!(
                "`answer` on {}: `{}` is no number, and the metric `{}` compares numbers",
                row.origin(),
                answer.trim(),
                metric.name
            );
            return Err(Error::TaskFile { path: self.path.clone(), reason });
        }
        Ok(Problem {
            question: self.render("question", row)?,
            solution: self.render("solution", row)?,
            labels: vec![answer],
            ..Problem::default()
        })
    }

    fn answerable(&self, problem: &Problem) -> bool {
        problem.labels.first().is_some_and(|answer| !answer.trim().is_empty())
    }

    fn score(&self, problem: &Problem, completion: &str) -> Result<Scores> {
        let expected = problem.labels.first().map_or("", String::as_str);
        let judged = self
            .spec
            .metrics
            .iter()
            .zip(&self.patterns)
            .map(|(metric, pattern)| (metric.name.clone(), metric.judge(pattern.as_ref(), expected, completion)));
        Ok(judged.collect())
    }

    fn class(&self, _row: &Row) -> &'static str {
        self.class
    }

    fn likelihood(&self, shots: &[Row], row: &Row) -> Result<Option<LikelihoodQuestion>> {
        let Some(spec) = &self.spec.likelihood else { return Ok(None) };
        if shots.len() < self.spec.shots {
            let (shots, found) = (self.spec.shots, shots.len());
            return Err(Error::TooFewShots { task: self.spec.name.clone(), shots, found });
        }
        let mut context = String::new();
        for shot in &shots[..self.spec.shots] {
            let (question, options, index) = self.likelihood_of(spec, shot)?;
            context.push_str(&format!("{question} {}\n\n", options[index]));
        }
        let (question, options, answer) = self.likelihood_of(spec, row)?;
        context.push_str(&question);
        let continuations = options.iter().map(|option| format!(" {option}")).collect();
        Ok(Some(LikelihoodQuestion { context, continuations, answer }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::from_jsonl;

    const CAPITALS: &str = r#"
        name = "capitals"
        version = 2
        shots = 1
        max_new_tokens = 16
        stop = ["\n"]
        rows = 2
        question = "What is the capital of {{ country }}?"
        answer = "{{ capital }}"
        solution = "It is {{ capital }}."
        [data]
        folder = "rows"
        [[metrics]]
        name = "named"
        description = "the word after `It is`"
        extract = 'It is (\w+)'
        take = "last"
        ignore_case = true
        [[metrics]]
        name = "bare"
        profile = "harness"
        [likelihood]
        context = "Q: {{ country }}\nA:"
        options = "options"
        index = "{{ options.index(capital) if false else place }}"
    "#;

    fn rows() -> Vec<Row> {
        let lines = concat!(
            r#"{"country": "France", "capital": "Paris", "options": ["Lyon", "Paris"], "place": 1}"#,
            "\n",
            r#"{"country": "Peru", "capital": "Lima", "options": ["Lima", "Cusco"], "place": 0}"#,
        );
        from_jsonl("capitals.jsonl", lines.as_bytes()).unwrap()
    }

    #[test]
    fn a_task_of_ones_own_asks_and_scores() {
        let task = FileTask::parse(Path::new("tasks/capitals.toml"), CAPITALS).unwrap();
        let rows = rows();
        assert_eq!(task.folder(), Some(PathBuf::from("tasks/rows")));
        assert_eq!((task.name(), task.version(), task.shots(), task.official_rows()), ("capitals", 2, 1, Some(2)));
        let problem = task.problem(&rows[1]).unwrap();
        let turns = task.prompt(&task.shots_for(&rows, &rows[1]).unwrap(), &problem);
        let said: Vec<&str> = turns.iter().map(|turn| turn.content.as_str()).collect();
        assert_eq!(said, ["What is the capital of France?", "It is Paris.", "What is the capital of Peru?"]);
        let scores = task.score(&problem, "It is Cusco. No: It is LIMA!").unwrap();
        assert_eq!(scores["named"], Score { extracted: Some("LIMA".to_owned()), correct: true });
        assert!(!scores["bare"].correct);
        assert!(task.score(&problem, " Lima\n").unwrap()["bare"].correct);
        assert_eq!(task.score(&problem, "Lima").unwrap()["named"].extracted, None);
        assert_eq!(task.headline(Profile::Harness), "bare");
        let asked = task.likelihood(&rows, &rows[1]).unwrap().unwrap();
        assert_eq!(asked.context, "Q: France\nA: Paris\n\nQ: Peru\nA:");
        assert_eq!((asked.continuations, asked.answer), (vec![" Lima".to_owned(), " Cusco".to_owned()], 0));
    }

    #[test]
    fn what_is_wrong_with_a_file_is_named() {
        let reason = |from: &str, to: &str| {
            assert!(CAPITALS.contains(from), "{from}");
            match FileTask::parse(Path::new("x.toml"), &CAPITALS.replace(from, to)) {
                Err(error) => error.to_string(),
                Ok(_) => panic!("{to} is accepted"),
            }
        };
        assert!(reason("version = 2", "version = 2\nshot = 3").contains("unknown field `shot`"));
        assert!(reason("folder = \"rows\"", "set = \"a/b\"").contains("OWNER/NAME/CONFIG"));
        assert!(reason("folder = \"rows\"", "").contains("either `set` or `folder`"));
        assert!(reason("{{ country }}?", "{{ country ").contains("`question` is no template"));
        assert!(reason(r"(\w+)", "(").contains("`metrics.extract` of `named`"));
        assert!(reason("rows = 2", "class = \"maths\"").contains("`maths` is none of"));
        assert!(reason("name = \"capitals\"", "name = \"a/b\"").contains("no name for files"));
        assert!(reason("name = \"capitals\"", "name = \"gsm8k\"").contains("built-in"));
        assert!(reason("name = \"capitals\"", "name = \"x_likelihood\"").contains("built-in"));
        assert!(reason("name = \"bare\"", "name = \"named\"").contains("two are named `named`"));
        assert!(reason("name = \"bare\"", "name = \"\"").contains("no name for a metric"));
        let numeric = CAPITALS.replace("name = \"bare\"", "name = \"bare\"\ncompare = \"number\"");
        let task = FileTask::parse(Path::new("x.toml"), &numeric).unwrap();
        let error = task.problem(&rows()[0]).unwrap_err().to_string();
        assert!(error.contains("`Paris` is no number, and the metric `bare`"), "{error}");
        let missing = CAPITALS.replace("{{ country }}?", "{{ land }}?");
        let task = FileTask::parse(Path::new("x.toml"), &missing).unwrap();
        let error = task.problem(&rows()[0]).unwrap_err().to_string();
        assert!(error.contains("`question` on capitals.jsonl: line 1") && error.contains("undefined"), "{error}");
    }
}
