//! From a row's columns to a conversation, in the layouts that instruction data comes in.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::conversation::Turn;
use super::drops::{DropReason, Fault};

/// How a row holds its conversation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schema {
    /// The first of the others whose columns the row has, row by row.
    #[default]
    Auto,
    /// A list of `{role, content}`.
    Messages,
    /// A list of `{from, value}`, from `system`, `human` and `gpt`.
    Sharegpt,
    /// Two strings, the user's turn and the reply.
    QuestionAnswer,
    /// Two strings, or two lists of messages of which the second continues the first, as in TRL.
    PromptCompletion,
    /// `instruction`, `input` (which may be empty or absent) and `output`.
    Alpaca,
}

/// Which columns of a row hold what.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Columns {
    /// Schema `messages`.
    pub messages: String,
    /// Schema `sharegpt`.
    pub conversations: String,
    /// Schema `question_answer`: the user's turn.
    pub question: String,
    /// Schema `question_answer`: the assistant's turn.
    pub answer: String,
    /// Schema `prompt_completion`: all before the reply.
    pub prompt: String,
    /// Schema `prompt_completion`: the reply.
    pub completion: String,
    /// Schema `alpaca`: what is to be done.
    pub instruction: String,
    /// Schema `alpaca`: with what.
    pub input: String,
    /// Schema `alpaca`: the reply.
    pub output: String,
    /// The guidance class, if any.
    pub class: Option<String>,
}

impl Default for Columns {
    fn default() -> Self {
        Self {
            messages: "messages".into(),
            conversations: "conversations".into(),
            question: "question".into(),
            answer: "answer".into(),
            prompt: "prompt".into(),
            completion: "completion".into(),
            instruction: "instruction".into(),
            input: "input".into(),
            output: "output".into(),
            class: None,
        }
    }
}

/// The turns of a row, each checked to have a known role and a text, and how many of them are context alone.
pub(super) fn turns(row: &Map<String, Value>, schema: Schema, columns: &Columns) -> Result<(Vec<Turn>, usize), Fault> {
    let row = Row(row);
    let schema = match schema {
        Schema::Auto => detect(&row, columns)?,
        chosen => chosen,
    };
    let mut context = 0;
    let turns = match schema {
        Schema::Auto | Schema::Messages => messages(row.need(&columns.messages)?, &columns.messages)?,
        Schema::Sharegpt => share_gpt(row.need(&columns.conversations)?, &columns.conversations)?,
        Schema::QuestionAnswer => {
            vec![Turn::new("user", row.text(&columns.question)?), Turn::new("assistant", row.text(&columns.answer)?)]
        }
        Schema::PromptCompletion => {
            let (turns, prompt) = prompt_completion(&row, columns)?;
            context = prompt;
            turns
        }
        Schema::Alpaca => alpaca(&row, columns)?,
    };
    for (number, turn) in (1..).zip(&turns) {
        if turn.content.trim().is_empty() {
            let reason = format!("turn {number} ({}) is empty", turn.role);
            return Err(Fault::new(DropReason::EmptyTurn, reason));
        }
    }
    Ok((turns, context))
}

/// The guidance class a row names in its column. A null is a row without a class; a missing column is a mistake.
pub(super) fn class(row: &Map<String, Value>, columns: &Columns) -> Result<Option<String>, Fault> {
    match &columns.class {
        None => Ok(None),
        Some(key) if row.get(key).is_some_and(Value::is_null) => Ok(None),
        Some(key) => Row(row).text(key).map(Some),
    }
}

struct Row<'a>(&'a Map<String, Value>);

impl<'a> Row<'a> {
    /// Exports of mixed tables write absent columns as null.
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    fn need(&self, key: &str) -> Result<&'a Value, Fault> {
        self.get(key).ok_or_else(|| {
            let found: Vec<&str> = self.0.keys().map(String::as_str).collect();
            Fault::new(DropReason::WrongType, format!("no column `{key}`; this row has: {}", found.join(", ")))
        })
    }

    fn text(&self, key: &str) -> Result<String, Fault> {
        text(self.need(key)?, &format!("column `{key}`"))
    }
}

fn text(value: &Value, what: &str) -> Result<String, Fault> {
    match value {
        Value::String(text) => Ok(text.clone()),
        other => Err(Fault::new(DropReason::WrongType, format!("{what} is not a string but {}", kind(other)))),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn detect(row: &Row<'_>, columns: &Columns) -> Result<Schema, Fault> {
    let found = [
        (&columns.messages, Schema::Messages),
        (&columns.conversations, Schema::Sharegpt),
        (&columns.question, Schema::QuestionAnswer),
        (&columns.instruction, Schema::Alpaca),
        (&columns.prompt, Schema::PromptCompletion),
    ]
    .into_iter()
    .find(|(column, _)| row.has(column));
    match found {
        Some((_, schema)) => Ok(schema),
        None => {
            let Columns { messages, conversations, question, prompt, instruction, .. } = columns;
            let there: Vec<&str> = row.0.keys().map(String::as_str).collect();
            let reason = format!(
                "no column `{messages}`, `{conversations}`, `{question}`, `{instruction}` or `{prompt}`; this row has: {}",
                there.join(", ")
            );
            Err(Fault::new(DropReason::WrongType, reason))
        }
    }
}

fn list<'a>(value: &'a Value, column: &str) -> Result<&'a [Value], Fault> {
    match value {
        Value::Array(items) => Ok(items),
        other => {
            let reason = format!("column `{column}` is not a list of messages but {}", kind(other));
            Err(Fault::new(DropReason::WrongType, reason))
        }
    }
}

/// A field of the `number`-th message of a column.
fn field<'a>(message: &'a Value, name: &str, column: &str, number: usize) -> Result<&'a str, Fault> {
    let wrong = |what: &str| Fault::new(DropReason::WrongType, format!("column `{column}`, message {number}: {what}"));
    let Value::Object(fields) = message else { return Err(wrong(&format!("it is {}", kind(message)))) };
    match fields.get(name) {
        Some(Value::String(text)) => Ok(text),
        Some(other) => Err(wrong(&format!("`{name}` is not a string but {}", kind(other)))),
        None => Err(wrong(&format!("no `{name}`"))),
    }
}

fn messages(value: &Value, column: &str) -> Result<Vec<Turn>, Fault> {
    let mut turns = Vec::new();
    for (number, message) in (1..).zip(list(value, column)?) {
        let role = field(message, "role", column, number)?;
        if !matches!(role, "system" | "user" | "assistant") {
            let reason = format!(
                "column `{column}`, message {number}: role `{role}` is none of system, user, assistant (tools are not \
                 trained)"
            );
            return Err(Fault::new(DropReason::UnknownRole, reason));
        }
        // A reply that calls tools would be learnt without its calls.
        let calls = message.get("tool_calls").is_some_and(|calls| match calls {
            Value::Null => false,
            Value::Array(calls) => !calls.is_empty(),
            _ => true,
        });
        if calls {
            let reason = format!("column `{column}`, message {number} calls tools, which are not trained");
            return Err(Fault::new(DropReason::UnknownRole, reason));
        }
        turns.push(Turn::new(role, field(message, "content", column, number)?));
    }
    Ok(turns)
}

fn share_gpt(value: &Value, column: &str) -> Result<Vec<Turn>, Fault> {
    let mut turns = Vec::new();
    for (number, message) in (1..).zip(list(value, column)?) {
        let role = match field(message, "from", column, number)? {
            "system" => "system",
            "human" | "user" => "user",
            "gpt" | "assistant" => "assistant",
            other => {
                let reason =
                    format!("column `{column}`, message {number}: from `{other}` is none of system, human, gpt");
                return Err(Fault::new(DropReason::UnknownRole, reason));
            }
        };
        turns.push(Turn::new(role, field(message, "value", column, number)?));
    }
    Ok(turns)
}

/// The turns, and how many of them are the prompt's: a reply in the prompt is context, never labelled.
fn prompt_completion(row: &Row<'_>, columns: &Columns) -> Result<(Vec<Turn>, usize), Fault> {
    let (prompt, completion) = (row.need(&columns.prompt)?, row.need(&columns.completion)?);
    match (prompt, completion) {
        (Value::Array(_), Value::Array(_)) => {
            let mut turns = messages(prompt, &columns.prompt)?;
            let context = turns.len();
            turns.extend(messages(completion, &columns.completion)?);
            Ok((turns, context))
        }
        _ => {
            let turns = vec![
                Turn::new("user", row.text(&columns.prompt)?),
                Turn::new("assistant", row.text(&columns.completion)?),
            ];
            Ok((turns, 1))
        }
    }
}

fn alpaca(row: &Row<'_>, columns: &Columns) -> Result<Vec<Turn>, Fault> {
    let instruction = row.text(&columns.instruction)?;
    let input = if row.has(&columns.input) { row.text(&columns.input)? } else { String::new() };
    // The chat template says who speaks; Alpaca's own preamble would say it a second time.
    let user = if input.trim().is_empty() { instruction } else { format!("{instruction}\n\n{input}") };
    Ok(vec![Turn::new("user", user), Turn::new("assistant", row.text(&columns.output)?)])
}
