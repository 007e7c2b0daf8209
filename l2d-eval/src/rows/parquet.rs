//! Parquet, through the record interface (no arrow).

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use ::parquet::errors::ParquetError;
use ::parquet::file::reader::{FileReader, SerializedFileReader};
use serde_json::Value;

use super::Row;
use crate::error::{Error, Result};

/// Reads rows until `rows` holds `wanted` of them.
pub(super) fn read_into(path: &Path, wanted: usize, rows: &mut Vec<Row>) -> Result<()> {
    let broken = |reason: String| Error::Parquet { path: path.to_path_buf(), reason };
    let file = File::open(path).map_err(|source| Error::io(path, source))?;
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    // The parquet crate asserts its way through broken pages; a hostile file must be an error here, not the end.
    let outcome = catch_unwind(AssertUnwindSafe(|| read_records(file, &name, wanted, rows)));
    match outcome {
        Ok(result) => result.map_err(|error| broken(error.to_string())),
        Err(_) => Err(broken("its pages contradict its schema".to_owned())),
    }
}

fn read_records(file: File, name: &str, wanted: usize, rows: &mut Vec<Row>) -> Result<(), ParquetError> {
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
    for record in reader.get_row_iter(None)? {
        if rows.len() >= wanted {
            return Ok(());
        }
        read += 1;
        match record?.to_json_value() {
            Value::Object(columns) => rows.push(Row::new(columns, format!("{name}: row {read}"))),
            other => return Err(ParquetError::General(format!("row {read} is no record: {other}"))),
        }
    }
    if read != promised {
        return Err(ParquetError::General(format!("it promises {promised} rows and has {read}")));
    }
    Ok(())
}
