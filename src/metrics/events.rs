//! Scalars as TensorBoard reads them: `Event` messages (tensorboard/compat/proto/event.proto, 2.19) in TFRecord frames.

use std::collections::BTreeMap;

/// The record that begins every event file.
pub fn header(time: f64) -> Vec<u8> {
    let mut event = vec![];
    double(&mut event, 1, time);
    bytes(&mut event, 3, b"brain.Event:2");
    frame(&event)
}

/// One record with the scalars of a step; `time` in seconds since 1970.
pub fn scalars(time: f64, step: u64, values: &BTreeMap<String, f64>) -> Vec<u8> {
    let mut summary = vec![];
    for (name, &value) in values {
        let mut scalar = vec![];
        bytes(&mut scalar, 1, name.as_bytes());
        scalar.push(2 << 3 | 5);
        scalar.extend((value as f32).to_le_bytes());
        bytes(&mut summary, 1, &scalar);
    }
    let mut event = vec![];
    double(&mut event, 1, time);
    if step > 0 {
        event.push(2 << 3);
        varint(&mut event, step);
    }
    bytes(&mut event, 5, &summary);
    frame(&event)
}

/// Length, its checksum, the data, its checksum.
fn frame(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(data.len() + 16);
    record.extend(length);
    record.extend(masked_crc(&length).to_le_bytes());
    record.extend(data);
    record.extend(masked_crc(data).to_le_bytes());
    record
}

/// CRC-32C, rotated and shifted as TFRecord asks for, so that a checksum of data with checksums is not degenerate.
fn masked_crc(data: &[u8]) -> u32 {
    let crc = data.iter().fold(!0u32, |crc, &byte| {
        let step = |crc: u32, _| (crc >> 1) ^ if crc & 1 == 1 { 0x82F6_3B78 } else { 0 };
        (0..8).fold(crc ^ u32::from(byte), step)
    });
    (!crc).rotate_right(15).wrapping_add(0xA282_EAD8)
}

fn double(out: &mut Vec<u8>, field: u8, value: f64) {
    out.push(field << 3 | 1);
    out.extend(value.to_le_bytes());
}

fn bytes(out: &mut Vec<u8>, field: u8, value: &[u8]) {
    out.push(field << 3 | 2);
    varint(out, value.len() as u64);
    out.extend(value);
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value > 127 {
        out.push(value as u8 | 128);
        value >>= 7;
    }
    out.push(value as u8);
}
