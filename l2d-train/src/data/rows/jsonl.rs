//! JSON lines, plain or gzipped.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;

use super::{Chunk, NumberedRow};
use crate::error::{Result, TrainError};

/// A row longer than this is no conversation but a file without line ends, perhaps a small archive of a huge one.
const MAX_LINE: u64 = 64 << 20;
/// A piece ends after so many bytes or lines: small enough that many are in work at a time, large enough that passing them
/// on costs nothing.
const CHUNK_BYTES: usize = 256 << 10;
const CHUNK_LINES: usize = 256;

/// Lines as they were read, empty ones included.
pub(in super::super) struct Lines {
    text: Vec<u8>,
    /// Where each ends, after its line feed.
    ends: Vec<usize>,
    /// Number of the first, from 1.
    first: usize,
}

impl Lines {
    fn new(first: usize) -> Self {
        Self { text: Vec::new(), ends: Vec::new(), first }
    }

    pub(super) fn rows(self) -> Vec<NumberedRow> {
        let mut rows = Vec::with_capacity(self.ends.len());
        let mut start = 0;
        for (number, &end) in (self.first..).zip(&self.ends) {
            let line = self.text[start..end].trim_ascii();
            start = end;
            if !line.is_empty() {
                rows.push((number, serde_json::from_slice(line).map_err(|error| explain(line, &error))));
            }
        }
        rows
    }
}

/// serde_json counts lines within the one line it was given; only its column means anything here.
fn explain(line: &[u8], error: &serde_json::Error) -> String {
    let text = error.to_string();
    let text = match text.rfind(" at line ") {
        Some(end) => format!("{} at column {}", &text[..end], error.column()),
        None => text,
    };
    match line {
        [b'[', ..] => format!("{text}; a list is no row: write one JSON object a line (jq -c '.[]')"),
        _ => text,
    }
}

/// Reads a `.jsonl` or, by its first bytes and not its name, a gzipped one.
pub(super) fn read(path: &Path, take: &mut dyn FnMut(Chunk) -> bool) -> Result<()> {
    let at = |e| TrainError::io(path, e);
    let mut reader = BufReader::with_capacity(1 << 16, File::open(path).map_err(at)?);
    let gzipped = reader.fill_buf().map_err(at)?.starts_with(&[0x1f, 0x8b]);
    if gzipped {
        lines(path, BufReader::with_capacity(1 << 16, MultiGzDecoder::new(reader)), take)
    } else if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gz")) {
        Err(TrainError::File { path: path.to_path_buf(), reason: "its name ends in .gz, but it is not gzipped".into() })
    } else {
        lines(path, reader, take)
    }
}

fn lines(path: &Path, mut reader: impl BufRead, take: &mut dyn FnMut(Chunk) -> bool) -> Result<()> {
    let mut chunk = Lines::new(1);
    for number in 1.. {
        let at_row = |reason: String| TrainError::Row { path: path.to_path_buf(), row: number, reason };
        // A truncated archive ends here, with the row it was met at.
        let line_limit = MAX_LINE + 1;
        let read = reader.by_ref().take(line_limit).read_until(b'\n', &mut chunk.text);
        let read = match read {
            Ok(read) => read,
            Err(error) => {
                // The rows before it may hold an earlier mistake, which is the one to name.
                chunk.text.truncate(chunk.ends.last().copied().unwrap_or(0));
                take(Chunk::Lines(chunk));
                return Err(at_row(error.to_string()));
            }
        };
        if read as u64 > MAX_LINE {
            return Err(at_row(format!("the line is longer than {} MiB; is this jsonl?", MAX_LINE >> 20)));
        }
        if read > 0 {
            chunk.ends.push(chunk.text.len());
        }
        if read == 0 || chunk.text.len() >= CHUNK_BYTES || chunk.ends.len() >= CHUNK_LINES {
            let full = std::mem::replace(&mut chunk, Lines::new(number + 1));
            if !take(Chunk::Lines(full)) || read == 0 {
                break;
            }
        }
    }
    Ok(())
}
