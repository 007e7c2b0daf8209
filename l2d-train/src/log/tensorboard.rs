//! TensorBoard's event file: scalars only.
//!
//! A record is `length: u64, crc(length), data, crc(data)` (TFRecord), its data one `Event` protocol buffer. Scalars need five
//! fields of two messages, so they are encoded here by hand; no maintained crate writes them without a protobuf compiler.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::error::{Result, TrainError};

/// An open event file.
#[derive(Debug)]
pub struct EventFile {
    path: PathBuf,
    file: File,
}

impl EventFile {
    /// Starts a file in `folder`. `wall_seconds` is the time since 1970; TensorBoard joins files of one folder and lets later
    /// ones win, so a resumed run simply starts another.
    pub fn create(folder: &Path, wall_seconds: f64) -> Result<Self> {
        // Two runs in one second must not overwrite each other; TensorBoard reads the files in order of their names.
        let path = folder.join(format!("events.out.tfevents.{:017.6}.l2d", wall_seconds));
        let file = File::create(&path).map_err(|e| TrainError::io(&path, e))?;
        let mut events = Self { path, file };
        let mut event = double(1, wall_seconds);
        event.extend(bytes(3, b"brain.Event:2"));
        events.record(&event)?;
        Ok(events)
    }

    /// Writes one scalar at a step.
    pub fn scalar(&mut self, wall_seconds: f64, step: u64, tag: &str, value: f32) -> Result<()> {
        let mut summary_value = bytes(1, tag.as_bytes());
        summary_value.extend(float(2, value));
        let mut event = double(1, wall_seconds);
        event.extend(varint_field(2, step));
        event.extend(bytes(5, &bytes(1, &summary_value)));
        self.record(&event)
    }

    fn record(&mut self, data: &[u8]) -> Result<()> {
        let length = (data.len() as u64).to_le_bytes();
        let mut record = Vec::with_capacity(data.len() + 16);
        record.extend(length);
        record.extend(masked_crc(&length).to_le_bytes());
        record.extend(data);
        record.extend(masked_crc(data).to_le_bytes());
        self.file.write_all(&record).map_err(|e| TrainError::io(&self.path, e))
    }
}

/// TFRecord's masking of CRC-32C.
fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push((value as u8 & 0x7f) | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

fn varint_field(field: u64, value: u64) -> Vec<u8> {
    [varint(field << 3), varint(value)].concat()
}

fn bytes(field: u64, value: &[u8]) -> Vec<u8> {
    [varint(field << 3 | 2), varint(value.len() as u64), value.to_vec()].concat()
}

fn double(field: u64, value: f64) -> Vec<u8> {
    [varint(field << 3 | 1), value.to_le_bytes().to_vec()].concat()
}

fn float(field: u64, value: f32) -> Vec<u8> {
    [varint(field << 3 | 5), value.to_le_bytes().to_vec()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc_is_castagnoli_masked() {
        // CRC-32C of "123456789" is 0xe3069283 (RFC 3720, B.4); the mask is TFRecord's.
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(masked_crc(b"123456789"), 0xe306_9283u32.rotate_right(15).wrapping_add(0xa282_ead8));
    }

    #[test]
    fn a_file_can_be_walked_record_by_record() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut events = EventFile::create(folder.path(), 1000.0).expect("created");
        events.scalar(1001.0, 300, "loss/train", 2.5).expect("written");
        let path = events.path.clone();
        drop(events);
        let data = std::fs::read(path).expect("read");
        let mut records = Vec::new();
        let mut rest = &data[..];
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().expect("8 bytes")) as usize;
            assert_eq!(rest[8..12], masked_crc(&rest[..8]).to_le_bytes());
            let record = &rest[12..12 + length];
            assert_eq!(rest[12 + length..16 + length], masked_crc(record).to_le_bytes());
            records.push(record.to_vec());
            rest = &rest[16 + length..];
        }
        assert_eq!(records.len(), 2);
        assert!(records[0].ends_with(b"brain.Event:2"));
        let tail = [&[0x15][..], &2.5f32.to_le_bytes()].concat();
        assert!(records[1].ends_with(&tail), "the simple value comes last");
        assert_eq!(records[1][9..12], [0x10, 0xac, 0x02], "step 300 as a varint");
    }
}
