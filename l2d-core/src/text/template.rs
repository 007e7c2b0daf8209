//! Chat templates: the Jinja a model was finetuned with, rendered as Hugging Face renders it.

use std::io;

use jiff::civil::Date;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde};
use minijinja::{Environment, ErrorKind, UndefinedBehavior, Value, context};
use minijinja_contrib::pycompat;
use serde::{Deserialize, Serialize};

use super::TextTokenizer;
use crate::error::{Error, Result};

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks: `system`, `user` or `assistant` in most templates.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Message {
    /// Any turn.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }

    /// A turn of the user.
    pub fn user(content: impl Into<String>) -> Self {
        Self::new("user", content)
    }

    /// A turn of the model.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self::new("assistant", content)
    }

    /// Standing instructions.
    pub fn system(content: impl Into<String>) -> Self {
        Self::new("system", content)
    }
}

/// Where a rendered conversation stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// After the last message and whatever the template closes it with.
    Closed,
    /// After the opening of a new assistant turn: the model answers next.
    GenerationPrompt,
    /// Right after the last message's content, its turn left open: the model continues it.
    ContinueFinalMessage,
}

/// The special tokens a template may name as variables.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TemplateTokens {
    /// `bos_token`.
    pub bos: Option<String>,
    /// `eos_token`.
    pub eos: Option<String>,
    /// `pad_token`.
    pub pad: Option<String>,
    /// `unk_token`.
    pub unk: Option<String>,
}

/// A parsed chat template.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    source: String,
    environment: Environment<'static>,
    tokens: TemplateTokens,
}

const NAME: &str = "chat_template";

/// The date `strftime_now` gives unless another is set: the one Llama 3's templates fall back to.
const DEFAULT_DATE: Date = jiff::civil::date(2024, 7, 26);

/// Steps and 64-byte pieces of text one rendering may use: enough for any conversation, little enough that a template
/// that never ends or doubles its text fails quickly.
const FUEL: u64 = 4_000_000;

/// Marks the end of the final message's content while it is rendered; Hugging Face does the same.
const CONTINUE_MARK: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

impl ChatTemplate {
    /// Parses a template. `strftime_now` is the 26th of July 2024 until [`set_date`](Self::set_date).
    pub fn new(source: &str, tokens: TemplateTokens) -> Result<Self> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| template_error(&e))?);
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_filter("tojson", to_json);
        environment.add_template_owned(NAME, without_generation_blocks(source)).map_err(|e| template_error(&e))?;
        let mut template = Self { source: source.to_string(), environment, tokens };
        template.set_date(DEFAULT_DATE);
        Ok(template)
    }

    /// Fixes the date that `strftime_now` gives (at midnight), so that prompts are reproducible.
    pub fn set_date(&mut self, date: Date) {
        self.environment.add_function("strftime_now", move |format: &str| {
            jiff::fmt::strtime::format(format, date.at(0, 0, 0, 0))
                .map_err(|e| minijinja::Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {e}")))
        });
    }

    /// The template's text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Renders a conversation. Errors with the template's own words when it raises, and when the last message cannot be
    /// continued because the template does not render its content.
    pub fn render(&self, messages: &[Message], ending: Ending) -> Result<String> {
        if ending == Ending::ContinueFinalMessage {
            return self.render_open(messages);
        }
        let template = self.environment.get_template(NAME).map_err(|e| template_error(&e))?;
        let TemplateTokens { bos, eos, pad, unk } = &self.tokens;
        // Hugging Face leaves a special token that the tokenizer lacks undefined, and passes `None` for tools.
        let token = |token: &Option<String>| token.as_deref().map_or(Value::UNDEFINED, Value::from);
        let variables = context! {
            messages => Serde(messages),
            tools => (),
            documents => (),
            add_generation_prompt => ending == Ending::GenerationPrompt,
            bos_token => token(bos),
            eos_token => token(eos),
            pad_token => token(pad),
            unk_token => token(unk),
        };
        template.render(variables).map_err(|e| template_error(&e))
    }

    fn render_open(&self, messages: &[Message]) -> Result<String> {
        let fail = |reason: &str| Error::ChatTemplate(format!("cannot continue the final message: {reason}"));
        let mut marked = messages.to_vec();
        let last = marked.last_mut().ok_or_else(|| fail("there are no messages"))?;
        let content = std::mem::take(&mut last.content);
        last.content = format!("{content}{CONTINUE_MARK}");
        let mut rendered = self.render(&marked, Ending::Closed)?;
        let mark = rendered.rfind(CONTINUE_MARK.trim_end()).ok_or_else(|| fail("the template leaves it out"))?;
        if !rendered[..mark].contains(content.trim()) {
            return Err(fail("the template changes its content"));
        }
        // A template that trims content would have trimmed the content's own trailing space as well.
        let keeps_spaces = rendered[mark..].starts_with(CONTINUE_MARK);
        rendered.truncate(mark);
        if !keeps_spaces {
            rendered.truncate(rendered.trim_end().len());
        }
        Ok(rendered)
    }

    /// Checks that the tokenizer has, as single tokens, the special tokens the template writes out (`<|im_end|>`).
    /// Without them a turn would never end. A template that closes turns with `eos_token` may use such names as plain
    /// text, as Zephyr's does.
    pub fn check_tokens(&self, tokenizer: &TextTokenizer) -> Result<()> {
        if self.source.contains("eos_token") {
            return Ok(());
        }
        let mut missing: Vec<&str> = special_names(&self.source);
        missing.retain(|name| tokenizer.token_to_id(name).is_none());
        missing.sort_unstable();
        missing.dedup();
        if missing.is_empty() {
            return Ok(());
        }
        let missing = missing.join(", ");
        Err(Error::Tokenizer(format!(
            "the chat template writes {missing}, which the tokenizer does not have as single tokens; use the tokenizer the \
             model was finetuned with, or a template that fits this one"
        )))
    }
}

/// Names of the form `<|...|>` in a template's text.
fn special_names(source: &str) -> Vec<&str> {
    let in_name = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | ':' | '/');
    let mut names = Vec::new();
    for (start, _) in source.match_indices("<|") {
        let rest = &source[start + 2..];
        let len = rest.find(|c| !in_name(c)).unwrap_or(rest.len());
        if len > 0 && rest[len..].starts_with("|>") {
            names.push(&source[start..start + 2 + len + 2]);
        }
    }
    names
}

/// `{% generation %}` marks what the assistant says, for training masks; it changes no text. Jinja engines other than
/// Hugging Face's extension do not know it, so it becomes a block that always applies.
fn without_generation_blocks(source: &str) -> String {
    let mut plain = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start + 2);
        plain.push_str(before);
        rest = tag;
        let Some(end) = tag.find("%}") else { break };
        let inside = &tag[..end];
        let word = inside.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        let replacement = match word {
            "generation" => "if true",
            "endgeneration" => "endif",
            _ => continue,
        };
        plain.push_str(&inside.replacen(word, replacement, 1));
        rest = &tag[end..];
    }
    plain.push_str(rest);
    plain
}

fn template_error(error: &minijinja::Error) -> Error {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    Error::ChatTemplate(text)
}

fn raise_exception(message: String) -> std::result::Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
}

/// Python's `json.dumps(x, ensure_ascii=False, indent=indent)`: minijinja's own escapes `<` and `>` for HTML.
fn to_json(value: &Value, indent: Option<usize>, options: Kwargs) -> std::result::Result<Value, minijinja::Error> {
    let indent = match indent {
        Some(indent) => Some(indent),
        None => options.get("indent")?,
    };
    // Hugging Face's filter takes these too; `ensure_ascii` is already off.
    let _: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let mut out = Vec::new();
    let written = match indent {
        Some(width) => {
            let indent = " ".repeat(width.min(16));
            let formatter = serde_json::ser::PrettyFormatter::with_indent(indent.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, formatter))
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, PythonFormatter)),
    };
    let failed = |e: &dyn std::fmt::Display| minijinja::Error::new(ErrorKind::BadSerialization, e.to_string());
    written.map_err(|e| failed(&e))?;
    let text = String::from_utf8(out).map_err(|e| failed(&e))?;
    Ok(Value::from(text))
}

/// Python separates by `, ` and `: `.
struct PythonFormatter;

impl serde_json::ser::Formatter for PythonFormatter {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}
