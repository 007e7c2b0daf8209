//! JSON lines, plain or gzipped.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;
use serde_json::{Map, Value};

use super::Row;
use crate::error::{Error, Result};

/// Reads a `.jsonl` or, by its magic and not its name, a gzipped one, until `rows` holds `wanted` rows.
pub(super) fn read_into(path: &Path, wanted: usize, rows: &mut Vec<Row>) -> Result<()> {
    let at = |source| Error::io(path, source);
    let mut reader = BufReader::new(File::open(path).map_err(at)?);
    let gzipped = reader.fill_buf().map_err(at)?.starts_with(&[0x1f, 0x8b]);
    if gzipped {
        parse(path, BufReader::new(MultiGzDecoder::new(reader)), wanted, rows)
    } else {
        parse(path, reader, wanted, rows)
    }
}

/// Rows from JSON lines already at hand, such as an embedded file; `name` is what errors call it.
///
/// # Errors
/// [`Error::Jsonl`] with the line's number.
pub fn from_jsonl(name: &str, text: &[u8]) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    parse(Path::new(name), text, usize::MAX, &mut rows)?;
    Ok(rows)
}

fn parse(path: &Path, mut reader: impl BufRead, wanted: usize, rows: &mut Vec<Row>) -> Result<()> {
    let broken = |line, reason: String| Error::Jsonl { path: path.to_path_buf(), line, reason };
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    let mut text = Vec::new();
    let mut line = 0;
    while rows.len() < wanted {
        text.clear();
        line += 1;
        let read = reader.read_until(b'\n', &mut text).map_err(|error| broken(line, error.to_string()))?;
        if read == 0 {
            break;
        }
        if text.trim_ascii().is_empty() {
            continue;
        }
        let columns: Map<String, Value> =
            serde_json::from_slice(text.trim_ascii()).map_err(|error| broken(line, without_position(&error)))?;
        rows.push(Row::new(columns, format!("{name}: line {line}")));
    }
    Ok(())
}

/// serde_json counts lines within the one line it was given; only its column means anything here.
fn without_position(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rfind(" at line ") {
        Some(end) => format!("{} at column {}", &text[..end], error.column()),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    const TWO: &[u8] = b"{\"a\": 1}\n\n{\"a\": 2}";

    fn read(bytes: &[u8]) -> Result<Vec<Row>> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        let mut rows = Vec::new();
        read_into(file.path(), usize::MAX, &mut rows)?;
        Ok(rows)
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn plain_and_gzipped_lines_read_alike() {
        let columns = |rows: Vec<Row>| rows.into_iter().map(|row| row.columns().clone()).collect::<Vec<_>>();
        let plain = columns(read(TWO).unwrap());
        assert_eq!(plain.len(), 2);
        assert_eq!(plain, columns(read(&gzip(TWO)).unwrap()));
        assert_eq!(plain, columns(read(&[gzip(&TWO[..9]), gzip(&TWO[9..])].concat()).unwrap()));
    }

    #[test]
    fn a_broken_line_is_named_by_its_number() {
        let error = from_jsonl("rows.jsonl", b"{\"a\": 1}\n{\"a\": \n").unwrap_err();
        assert_eq!(error.to_string(), "rows.jsonl: line 2: EOF while parsing a value at column 5");
        let error = from_jsonl("rows.jsonl", b"[1]\n").unwrap_err();
        assert!(matches!(error, Error::Jsonl { line: 1, .. }), "{error}");
        let error = from_jsonl("rows.jsonl", b"{}\n{\"a\": \"\xff\"}\n").unwrap_err();
        assert!(matches!(error, Error::Jsonl { line: 2, .. }), "{error}");
    }

    #[test]
    fn a_cut_off_gzip_is_an_error() {
        let whole = gzip(TWO);
        for length in 2..whole.len() {
            assert!(read(&whole[..length]).is_err(), "{length} of {} bytes", whole.len());
        }
    }

    #[test]
    fn reading_stops_at_the_limit() {
        let mut rows = Vec::new();
        parse(Path::new("x"), &b"{}\n{}\nnot json\n"[..], 2, &mut rows).unwrap();
        assert_eq!(rows.len(), 2);
    }
}
