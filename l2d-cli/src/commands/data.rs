//! `l2d data inspect`: what a run would learn from.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::IsTerminal;

use l2d_core::checkpoint::Checkpoint;
use l2d_train::TrainConfig;
use l2d_train::data::{DatasetStats, Example, SourceReport, TokenStore};
use serde::Serialize;

use crate::args::DataInspectArgs;
use crate::commands::train::{data, settings};
use crate::error::CliError;
use crate::model::{Text, on_interrupt};
use crate::output::say;

/// Bars of the histogram.
const BARS: u32 = 16;
/// Characters of its longest bar.
const BAR_WIDTH: usize = 40;

/// Runs the command.
pub(crate) fn inspect(args: &DataInspectArgs) -> Result<(), CliError> {
    let mut config = settings::from_files(&args.source.config, &args.source.set)?;
    config.max_tokens = args.source.max_tokens.unwrap_or(config.max_tokens);
    config.check()?;
    config.sources = data::sources(&args.source.data, &config)?;
    config.check()?;
    let cache = data::cache_folder(args.source.data_cache.as_deref())?;
    let checkpoint = Checkpoint::open(&args.model)?;
    let text = Text::of(&checkpoint);
    let cancel = on_interrupt()?;
    let store = data::open(&config, &text, checkpoint.config.max_positions, &cache, &cancel, true)?;
    let report = Report::new(&store, &config, &text, args.examples)?;
    if args.json {
        let json = serde_json::to_string_pretty(&report).map_err(|e| CliError::Usage(format!("--json: {e}")))?;
        return say!("{json}");
    }
    report.print()
}

#[derive(Serialize)]
struct Report {
    sources: Vec<SourceReport>,
    total: DatasetStats,
    lengths: Lengths,
    classes: BTreeMap<String, u64>,
    examples: Vec<Shown>,
}

/// Tokens of an example, prompt and reply.
#[derive(Serialize)]
struct Lengths {
    mean: f64,
    median: u32,
    percentile_95: u32,
    longest: u32,
    histogram: Vec<Bar>,
}

#[derive(Serialize)]
struct Bar {
    from: u32,
    to: u32,
    examples: u64,
}

#[derive(Serialize)]
struct Shown {
    example: usize,
    class: Option<String>,
    tokens: usize,
    labelled: usize,
    pieces: Vec<Piece>,
}

/// A run of tokens of one kind.
#[derive(Serialize, PartialEq, Debug)]
struct Piece {
    text: String,
    special: bool,
    labelled: bool,
}

impl Report {
    fn new(store: &TokenStore, config: &TrainConfig, text: &Text, examples: usize) -> Result<Self, CliError> {
        let name = |class: usize| config.diffusion.classes.get(class).cloned().unwrap_or_default();
        let mut classes = BTreeMap::new();
        for entry in store.entries() {
            if let Some(class) = entry.class() {
                *classes.entry(name(class)).or_default() += 1;
            }
        }
        let count = store.entries().len();
        let shown = (0..examples.min(count)).map(|i| i * count / examples.min(count));
        let shown = shown
            .map(|number| {
                let example = store.get(number)?;
                Ok(Shown {
                    example: number + 1,
                    class: example.class.map(name),
                    tokens: example.tokens.len(),
                    labelled: example.num_labels(),
                    pieces: pieces(&example, text)?,
                })
            })
            .collect::<Result<_, CliError>>()?;
        Ok(Self {
            sources: store.sources().to_vec(),
            total: store.stats(),
            lengths: Lengths::of(store.entries().iter().map(|entry| entry.len).collect()),
            classes,
            examples: shown,
        })
    }

    fn print(&self) -> Result<(), CliError> {
        for source in &self.sources {
            say!("{}: {} file(s)", source.name, source.files.len())?;
            counts(&source.stats)?;
        }
        if self.sources.len() > 1 {
            say!("all sources")?;
            counts(&self.total)?;
        }
        for (class, examples) in &self.classes {
            say!("  class {class}: {examples} examples")?;
        }
        let Lengths { mean, median, percentile_95, longest, histogram } = &self.lengths;
        say!(
            "tokens of an example: mean {mean:.0}, median {median}, 95 of 100 have at most {percentile_95}, longest {longest}"
        )?;
        let highest = histogram.iter().map(|bar| bar.examples).max().unwrap_or(1).max(1);
        for Bar { from, to, examples } in histogram {
            let mut width = (*examples as usize * BAR_WIDTH).div_ceil(highest as usize);
            width = width.min(BAR_WIDTH);
            say!("  {from:>6} to {to:>6} {:BAR_WIDTH$} {examples}", "#".repeat(width))?;
        }
        let colour =
            std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        for shown in &self.examples {
            let class = shown.class.as_ref().map_or_else(String::new, |class| format!(", class {class}"));
            say!("\nexample {}: {} tokens, {} labelled{class}", shown.example, shown.tokens, shown.labelled)?;
            say!("{}", paint(&shown.pieces, colour))?;
        }
        if !colour && !self.examples.is_empty() {
            say!("\n[[ ]] marks what is labelled, < > special tokens as the tokenizer spells them.")?;
        }
        Ok(())
    }
}

fn counts(stats: &DatasetStats) -> Result<(), CliError> {
    let share = 100.0 * stats.labels as f64 / stats.tokens.max(1) as f64;
    say!("  rows     {}", stats.rows)?;
    say!("  examples {}", stats.examples)?;
    say!("  dropped  {}", stats.dropped_in_words())?;
    say!("  tokens   {}, labelled {} ({share:.1} %)", stats.tokens, stats.labels)
}

impl Lengths {
    fn of(mut lengths: Vec<u32>) -> Self {
        lengths.sort_unstable();
        let at = |share: f64| lengths.get(((lengths.len() as f64 * share) as usize).min(lengths.len().max(1) - 1));
        let longest = lengths.last().copied().unwrap_or(0);
        // Bars of equal, round width.
        let width = longest.div_ceil(BARS).max(1).next_power_of_two();
        let mut histogram: Vec<Bar> = (0..=longest / width)
            .map(|bar| Bar { from: bar * width, to: (bar + 1) * width - 1, examples: 0 })
            .collect();
        for length in &lengths {
            histogram[(length / width) as usize].examples += 1;
        }
        Self {
            mean: lengths.iter().map(|&length| f64::from(length)).sum::<f64>() / lengths.len().max(1) as f64,
            median: at(0.5).copied().unwrap_or(0),
            percentile_95: at(0.95).copied().unwrap_or(0),
            longest,
            histogram,
        }
    }
}

/// An example as runs of special or ordinary, labelled or unlabelled tokens.
fn pieces(example: &Example, text: &Text) -> Result<Vec<Piece>, CliError> {
    let kind = |&(i, &token): &(usize, &u32)| (i >= example.prompt, text.tokenizer.is_special(token));
    let tokens: Vec<(usize, &u32)> = example.tokens.iter().enumerate().collect();
    tokens
        .chunk_by(|a, b| kind(a) == kind(b))
        .map(|run| {
            let (labelled, special) = kind(&run[0]);
            let ids: Vec<u32> = run.iter().map(|&(_, &token)| token).collect();
            Ok(Piece { text: text.tokenizer.decode(&ids, false)?, special, labelled })
        })
        .collect()
}

/// Dim for what is not labelled, green for what is, reversed for special tokens; without colour, brackets.
fn paint(pieces: &[Piece], colour: bool) -> String {
    let mut line = String::new();
    let mut inside = false;
    for piece in pieces {
        let text = visible(&piece.text);
        if colour {
            let shade = if piece.labelled { "32" } else { "2" };
            let special = if piece.special { ";7" } else { "" };
            let _ = write!(line, "\x1b[{shade}{special}m{text}\x1b[0m");
            continue;
        }
        if piece.labelled != inside {
            line.push_str(if piece.labelled { "[[" } else { "]]" });
            inside = piece.labelled;
        }
        line.push_str(&text);
    }
    if inside {
        line.push_str("]]");
    }
    line
}

/// Control characters of the data are spelt out: they must not command the terminal.
fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => shown.push('\n'),
            c if c.is_control() => shown.extend(c.escape_default()),
            c => shown.push(c),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(text: &str, special: bool, labelled: bool) -> Piece {
        Piece { text: text.into(), special, labelled }
    }

    #[test]
    fn the_labelled_part_is_marked_with_or_without_colour() {
        let pieces = [
            piece("<s>", true, false),
            piece("q\x1b[2J\n", false, false),
            piece("a", false, true),
            piece("</s>", true, true),
        ];
        assert_eq!(paint(&pieces, false), "<s>q\\u{1b}[2J\n[[a</s>]]");
        assert_eq!(
            paint(&pieces, true),
            "\x1b[2;7m<s>\x1b[0m\x1b[2mq\\u{1b}[2J\n\x1b[0m\x1b[32ma\x1b[0m\x1b[32;7m</s>\x1b[0m"
        );
    }

    #[test]
    fn a_histogram_counts_every_example_once() {
        let lengths = Lengths::of(vec![100, 1, 63, 64, 2000]);
        assert_eq!((lengths.median, lengths.longest), (64, 2000));
        assert_eq!(lengths.histogram.iter().map(|bar| bar.examples).sum::<u64>(), 5);
        assert_eq!(lengths.histogram.len(), 16);
        assert_eq!(Lengths::of(vec![]).longest, 0);
    }
}
