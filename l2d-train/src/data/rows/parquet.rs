//! Parquet, through the record interface (no arrow).

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use ::parquet::errors::ParquetError;
use ::parquet::file::reader::{FileReader, SerializedFileReader};
use ::parquet::record::Row;
use serde_json::Value;

use super::{Chunk, NumberedRow};
use crate::error::{Result, TrainError};

const CHUNK_ROWS: usize = 256;

/// Records as they were read.
pub(in super::super) struct Records {
    records: Vec<Row>,
    /// Number of the first, from 1.
    first: usize,
}

impl Records {
    pub(super) fn rows(self) -> Vec<NumberedRow> {
        // A date or a time beyond the calendar makes the crate panic.
        let columns = |record: Row| match catch_unwind(AssertUnwindSafe(|| record.to_json_value())) {
            Ok(Value::Object(columns)) => Ok(columns),
            Ok(other) => Err(format!("it is no record: {other}")),
            Err(_) => Err("a value (a date or a time?) is out of its type's range".into()),
        };
        (self.first..).zip(self.records).map(|(number, record)| (number, columns(record))).collect()
    }
}

/// Reads all row groups, one record after the other.
pub(super) fn read(path: &Path, take: &mut dyn FnMut(Chunk) -> bool) -> Result<()> {
    let broken =
        |reason: String| TrainError::File { path: path.to_path_buf(), reason: format!("broken parquet: {reason}") };
    let file = File::open(path).map_err(|e| TrainError::io(path, e))?;
    // The parquet crate asserts its way through broken pages; a hostile file must be an error here, not the end.
    match catch_unwind(AssertUnwindSafe(|| records(file, take))) {
        Ok(result) => result.map_err(|error| broken(error.to_string())),
        Err(_) => Err(broken("its pages contradict its schema".into())),
    }
}

fn records(file: File, take: &mut dyn FnMut(Chunk) -> bool) -> std::result::Result<(), ParquetError> {
    let reader = SerializedFileReader::new(file)?;
    for column in reader.metadata().row_groups().iter().flat_map(|group| group.columns()) {
        let start = column.dictionary_page_offset().unwrap_or_else(|| column.data_page_offset());
        if start < 0 || column.compressed_size() < 0 {
            let reason = format!("column `{}` lies before the file", column.column_path().string());
            return Err(ParquetError::General(reason));
        }
    }
    let promised = reader.metadata().file_metadata().num_rows();
    let mut read = 0;
    let mut chunk = Records { records: Vec::new(), first: 1 };
    for record in reader.get_row_iter(None)? {
        read += 1;
        chunk.records.push(record?);
        if chunk.records.len() == CHUNK_ROWS {
            let full = std::mem::replace(&mut chunk, Records { records: Vec::new(), first: read + 1 });
            if !take(Chunk::Records(full)) {
                return Ok(());
            }
        }
    }
    if read as i64 != promised {
        return Err(ParquetError::General(format!("it promises {promised} rows and has {read}")));
    }
    take(Chunk::Records(chunk));
    Ok(())
}
