//! Makes what an input changed pass for what it was: checksums first of all, so that an input
//! gets to the checks behind them.

use thalweg_node::config::BLOCK_BYTES;
use thalweg_node::log::format::{FRAME_HEADER_BYTES, padded_frame_bytes};
use thalweg_wire::batch::HEADER_BYTES;
use thalweg_wire::checksum::{crc32c, crc32c_pieces};
use thalweg_wire::codec::{put, u32_at, u64_at};

use crate::files::{BOOT, DISK, FILE_BYTES, LOG};

/// First bytes of a frame in the log.
pub const LOG_FRAME_MAGIC: &[u8; 4] = b"TWLF";
/// First bytes of a segment.
pub const SEGMENT_MAGIC: &[u8; 8] = b"THALWEGS";
/// First bytes of a trailer.
pub const TRAILER_MAGIC: &[u8; 8] = b"THALWEGF";

/// Checksums of a batch: body, client part, header. Nothing happens without a whole header; a body
/// that is cut short is summed up as far as it goes.
pub fn batch(bytes: &mut [u8]) {
    if bytes.len() < HEADER_BYTES {
        return;
    }
    let body_bytes = u32_at(bytes, 8) as usize;
    let end = HEADER_BYTES.saturating_add(body_bytes).min(bytes.len());
    let body_crc = crc32c(&bytes[HEADER_BYTES..end]);
    put(bytes, 16, body_crc.to_le_bytes());
    batch_header(bytes);
}

/// Checksums of a batch's header alone.
pub fn batch_header(bytes: &mut [u8]) {
    let client_crc = crc32c(&bytes[..60]);
    put(bytes, 60, client_crc.to_le_bytes());
    let header_crc = crc32c(&bytes[..124]);
    put(bytes, 124, header_crc.to_le_bytes());
}

/// Checksum of a header block or trailer; magic and version as they should be.
pub fn block(bytes: &mut [u8], magic: &[u8; 8]) {
    put(bytes, 0, magic);
    put(bytes, 8, 1_u16.to_le_bytes());
    let crc = crc32c_pieces(&[&bytes[..12], &bytes[16..]]);
    put(bytes, 12, crc.to_le_bytes());
}

/// Everything in a segment's file that has a checksum. With `identity`, what says where a frame or
/// header belongs is made right as well.
pub fn segment(file: &mut [u8], identity: bool) {
    let (mut sequence, mut base) = (0, 0);
    if file.starts_with(SEGMENT_MAGIC) {
        let header = &mut file[..BLOCK_BYTES as usize];
        if identity {
            put(header, 16, DISK.0);
            put(header, 32, LOG.to_le_bytes());
            put(header, 72, FILE_BYTES.to_le_bytes());
            put(header, 80, BOOT.0.to_le_bytes());
        }
        block(header, SEGMENT_MAGIC);
        (sequence, base) = (u64_at(file, 40), u64_at(file, 56));
    }
    let trailer_at = file.len() - BLOCK_BYTES as usize;
    if file[trailer_at..].starts_with(TRAILER_MAGIC) {
        trailer(file, sequence, identity);
    }
    let mut at = BLOCK_BYTES as usize;
    while at + FRAME_HEADER_BYTES <= trailer_at {
        at += if file[at..].starts_with(LOG_FRAME_MAGIC) {
            log_frame(file, at, identity.then_some((sequence, base)))
        } else {
            FRAME_HEADER_BYTES
        };
    }
}

/// A trailer and the checksum of what it names.
fn trailer(file: &mut [u8], sequence: u64, identity: bool) {
    let (body, last) = file.split_at_mut(file.len() - BLOCK_BYTES as usize);
    if identity {
        put(last, 16, sequence.to_le_bytes());
    }
    let start = u64_at(last, 32) as usize;
    let counts = u64::from(u32_at(last, 40)) + u64::from(u32_at(last, 44));
    let bytes = usize::try_from(counts * 32).unwrap_or(usize::MAX);
    if let Some(named) = body.get(start..start.saturating_add(bytes)) {
        put(last, 48, crc32c(named).to_le_bytes());
    }
    block(last, TRAILER_MAGIC);
}

/// A frame of the log; answers the bytes it takes.
fn log_frame(file: &mut [u8], at: usize, home: Option<(u64, u64)>) -> usize {
    let (header, rest) = file[at..].split_at_mut(FRAME_HEADER_BYTES);
    put(header, 6, 1_u16.to_le_bytes());
    if let Some((sequence, base)) = home {
        put(header, 8, sequence.to_le_bytes());
        put(header, 16, BOOT.0.to_le_bytes());
        put(header, 24, base.wrapping_add(at as u64).to_le_bytes());
    }
    let payload_bytes = u32_at(header, 44) as usize;
    if let Some(payload) = rest.get_mut(..payload_bytes) {
        if u32_at(header, 4) as u16 == 1 {
            batch(payload);
        }
        put(header, 48, crc32c(payload).to_le_bytes());
    }
    let crc = crc32c(&header[..60]);
    put(header, 60, crc.to_le_bytes());
    let padded = padded_frame_bytes(payload_bytes as u64) as usize;
    if payload_bytes <= rest.len() { padded } else { FRAME_HEADER_BYTES }
}
