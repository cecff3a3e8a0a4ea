//! Error codes as they travel, with the hint that lets a peer go on.

use std::fmt;

macro_rules! codes {
    ($($(#[doc = $doc:literal])* $name:ident = $value:literal, $text:literal;)*) => {
        /// Why a request, or a batch of one, was refused. The meaning of the hint that travels
        /// beside a code is part of the code; zero where none is named.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
        #[repr(u16)]
        pub enum ErrorCode { $($(#[doc = $doc])* $name = $value,)* }

        impl ErrorCode {
            /// Every code, in order.
            pub const ALL: &'static [ErrorCode] = &[$(ErrorCode::$name),*];

            /// The code with this number.
            #[must_use]
            pub fn from_number(number: u16) -> Option<ErrorCode> {
                match number { $($value => Some(ErrorCode::$name),)* _ => None }
            }

            fn text(self) -> &'static str {
                match self { $(ErrorCode::$name => $text,)* }
            }
        }
    };
}

codes! {
    /// The bytes are no frame, or a field is out of its range. The connection closes.
    Malformed = 1, "the frame is malformed: check the client's protocol version";
    /// The hint is the version this node speaks. The connection closes.
    UnsupportedVersion = 2, "another protocol version: use a client of the node's version";
    /// A kind of frame that this node does not serve.
    UnsupportedKind = 3, "this node does not serve such frames";
    /// The hint is the limit.
    TooLarge = 4, "larger than the limit in the hint: send less at once";
    /// A checksum does not match. For a frame the connection closes; for a batch, it alone.
    ChecksumMismatch = 5, "a checksum does not match: the bytes changed on the way; send again";
    /// The body is no valid batch.
    BatchInvalid = 6, "the batch is not valid: its columns, counts or sizes contradict";
    /// A hash key lies outside the shard's range.
    HashOutOfRange = 7, "a hash key lies outside the shard's range: refresh the route";
    /// No such shard on this node.
    UnknownShard = 8, "this node holds no such shard: refresh the route";
    /// The shard is another core's; the hint is its port.
    WrongCore = 9, "another core of the node serves the shard: use the port in the hint";
    /// The epoch is not the open extent's; the hint is the current epoch.
    StaleEpoch = 10, "the shard has another leader tenure: refresh the route";
    /// The extent takes no appends any more; the hint is its end, where that is known.
    ExtentClosed = 11, "the extent is closed: refresh the route";
    /// The sequence is neither a repetition nor the next; the hint is the expected one.
    SequenceGap = 12, "a batch before this one is missing: send from the sequence in the hint";
    /// The node does not remember the producer.
    ProducerUnknown = 13, "the producer is not remembered: go on under a new producer id";
    /// A bucket is empty; the hint is the wait in microseconds.
    Throttled = 14, "the shard's rate is used up: wait as long as the hint says";
    /// A bound of the node is reached; nothing was done.
    Overloaded = 15, "the node is at a limit: send again later";
    /// The log stopped after a failed write or sync.
    LogFailed = 16, "the log stopped after an I/O error: fail over, check the disk, restart";
    /// No space for another segment.
    NoSpace = 17, "no space on the disk: free some or add a data directory";
    /// Another node holds the extent; the hint is its end offset.
    ExtentElsewhere = 18, "another node holds the extent: ask one of its replicas";
    /// Records before the hint's offset are gone.
    Trimmed = 19, "the records were trimmed: go on at the offset in the hint";
    /// Beyond the end; the hint is the end.
    BeyondEnd = 20, "beyond the end of the shard, which is the offset in the hint";
    /// The peer sent too slowly; the hint is the minimum rate in bytes/s. The connection closes.
    TooSlow = 21, "the frame arrived below the minimum rate in the hint";
    /// Stored bytes do not match their checksums; the hint is the first damaged batch's offset.
    Corrupt = 22, "stored records are damaged: read them from another replica";
    /// The node is stopping.
    Stopping = 23, "the node is stopping: go to the shard's next leader";
    /// A flag or option that this version does not serve.
    Unsupported = 24, "an option that this version does not serve";
    /// A command contradicts what is recorded; the hint is the recorded epoch.
    Conflict = 25, "the command contradicts the recorded state: read it and decide again";
    /// The command carries a lower recovery epoch than the recorded one, which is the hint.
    StaleRecovery = 26, "a later recovery is under way: stop this one";
    /// A repetition of a batch so old that its offset is forgotten; it was stored.
    DuplicateForgotten = 27, "the batch was stored, but too long ago to tell where";
    /// Read side: too many calls or bytes; the hint is the wait in microseconds.
    ReadThrottled = 28, "the shard's read rate is used up: wait as long as the hint says";
    /// The disk did not give stored records; the hint is the system's error number. They may be
    /// intact.
    ReadFailed = 29, "the disk failed to read stored records: read them from another replica, check the disk";
    /// Some records of a batch whose records are independent find no tokens; nothing was stored.
    /// The hint is the wait in microseconds until the first of them would; verdicts say which.
    PartlyThrottled = 30, "the shard's rate is used up for some of the records: send the others again";
    /// The core's logs have as many extents as they can list; nothing was done. Another core may
    /// have room.
    TooManyShards = 31, "the core has no room for another shard: give the node more cores or another data directory; shards that ended keep their place";
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

/// A refusal: its code and what the code's hint says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// Why.
    pub code: ErrorCode,
    /// As the code defines it.
    pub hint: u64,
}

impl Refusal {
    /// A refusal with a hint.
    #[must_use]
    pub fn new(code: ErrorCode, hint: u64) -> Refusal {
        Refusal { code, hint }
    }
}

impl From<ErrorCode> for Refusal {
    fn from(code: ErrorCode) -> Refusal {
        Refusal { code, hint: 0 }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} (hint {}): {}", self.code, self.hint, self.code)
    }
}

impl std::error::Error for Refusal {}

/// A code as it travels in answers: zero is success.
#[must_use]
pub fn status_number(status: Result<(), ErrorCode>) -> u16 {
    status.map_or_else(|code| code as u16, |()| 0)
}

/// The status that a number stands for; `None` when no version has such a number.
#[must_use]
pub fn status_from_number(number: u16) -> Option<Result<(), ErrorCode>> {
    if number == 0 { Some(Ok(())) } else { ErrorCode::from_number(number).map(Err) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_round_trip_and_are_frozen() {
        for code in ErrorCode::ALL {
            assert_eq!(ErrorCode::from_number(*code as u16), Some(*code));
            assert_eq!(status_from_number(status_number(Err(*code))), Some(Err(*code)));
        }
        assert_eq!(ErrorCode::from_number(0), None);
        assert_eq!(ErrorCode::from_number(32), None);
        assert_eq!(ErrorCode::TooManyShards as u16, 31);
    }
}
