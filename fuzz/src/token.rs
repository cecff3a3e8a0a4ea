//! Tokens: what was not given out opens nothing.
//!
//! An input is a byte that says what follows: a text that somebody sends as a token, or, with
//! [`IS_CONTENT`], choices: the content of a token that is given out, a change of its text, and how
//! much later it comes back.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use arbitrary::{Result, Unstructured};
use thalweg_router::control::store::embedded::{EmbeddedOptions, EmbeddedStore};
use thalweg_router::kinesis::token::{
    TOKEN_CONTENT_BYTES_MAX, TokenContent, TokenError, TokenKind, Tokens,
};
use tokio::runtime::{Builder, Runtime};

use crate::choices;

/// Choices follow.
pub const IS_CONTENT: u8 = 1;

/// When tokens are given out, milliseconds since 1970.
const ISSUED_MS: u64 = 1_795_521_600_000;
const LIFETIME: Duration = Duration::from_secs(300);

static NOW_MS: AtomicU64 = AtomicU64::new(ISSUED_MS);

struct World {
    runtime: Runtime,
    tokens: Tokens<EmbeddedStore>,
}

static WORLD: LazyLock<World> = LazyLock::new(|| {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let directory = tempfile::tempdir().expect("a directory");
    let tokens = runtime.block_on(async {
        let path = directory.path().join("store");
        let store = EmbeddedStore::open(&path, EmbeddedOptions::default()).expect("a store");
        let tokens = Tokens::new(store, Arc::new(|| NOW_MS.load(Ordering::Relaxed)));
        // Makes the keys. The store goes on without the name of its file, which nobody then has to
        // remove.
        tokens.seal(&Content::<1>(Vec::new())).await.expect("keys");
        tokens
    });
    World { runtime, tokens }
});

/// Content of any kind.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Content<const KIND: u8>(Vec<u8>);

impl<const KIND: u8> TokenContent for Content<KIND> {
    const KIND: TokenKind = match KIND {
        1 => TokenKind::ListShards,
        2 => TokenKind::ListStreams,
        3 => TokenKind::ShardIterator,
        _ => TokenKind::ListStreamConsumers,
    };
    const LIFETIME: Duration = LIFETIME;

    fn encode(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(&self.0);
    }

    fn decode(content: &[u8]) -> Option<Self> {
        Some(Content(content.to_vec()))
    }
}

/// Runs an input.
///
/// # Panics
/// When a token opens that was not given out, or one does not that was.
pub fn run(input: &[u8]) {
    let Some((mode, rest)) = input.split_first() else { return };
    NOW_MS.store(ISSUED_MS, Ordering::Relaxed);
    if mode & IS_CONTENT != 0 {
        let _ = given_out(&mut Unstructured::new(rest));
    } else {
        opens_nothing(&String::from_utf8_lossy(rest));
    }
}

fn open<const KIND: u8>(token: &str) -> std::result::Result<Vec<u8>, TokenError> {
    WORLD.runtime.block_on(WORLD.tokens.open::<Content<KIND>>(token)).map(|content| content.0)
}

fn opens_nothing(token: &str) {
    for opened in [open::<1>(token), open::<2>(token), open::<3>(token), open::<4>(token)] {
        assert!(matches!(opened, Err(TokenError::Invalid)), "{opened:?}");
    }
}

fn given_out(choices: &mut Unstructured<'_>) -> Result<()> {
    let content: &[u8] = choices.arbitrary()?;
    let content = Content::<3>(content[..content.len().min(TOKEN_CONTENT_BYTES_MAX)].to_vec());
    let token = WORLD.runtime.block_on(WORLD.tokens.seal(&content)).expect("keys are there");
    assert!(token.len() <= 512, "a shard iterator has at most 512 characters");
    assert_eq!(open::<3>(&token).expect("it was given out"), content.0);
    for opened in [open::<1>(&token), open::<2>(&token), open::<4>(&token)] {
        assert!(matches!(opened, Err(TokenError::Invalid)), "of another kind: {opened:?}");
    }
    opens_nothing(&changed(choices, &token)?);

    let later_ms: u64 = choices.int_in_range(0..=600_000)?;
    NOW_MS.store(ISSUED_MS + later_ms, Ordering::Relaxed);
    match open::<3>(&token) {
        Ok(opened) => assert!(u128::from(later_ms) <= LIFETIME.as_millis() && opened == content.0),
        Err(TokenError::Expired { issued_ms, .. }) => {
            assert!(u128::from(later_ms) > LIFETIME.as_millis() && issued_ms == ISSUED_MS);
        }
        Err(error) => panic!("{error}"),
    }
    Ok(())
}

/// The token with a bit flipped, cut short, or with something behind it.
fn changed(choices: &mut Unstructured<'_>, token: &str) -> Result<String> {
    let mut bytes = token.as_bytes().to_vec();
    let at = choices.choose_index(bytes.len())?;
    match choices.int_in_range(0..=2)? {
        0 => bytes[at] ^= 1 << choices.int_in_range(0..=6)?,
        1 => bytes.truncate(at),
        _ => bytes.extend_from_slice(&token.as_bytes()[at..]),
    }
    Ok(String::from_utf8(bytes).expect("ASCII with other bits below the eighth is ASCII"))
}

/// What the corpus begins with: texts that look like tokens, and choices.
#[must_use]
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let texts = [
        ("empty", ""),
        ("no-base64", "not a token!"),
        ("no-padding", "AQAAAAE"),
        ("head-only", "AQAAAAEAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"),
        ("other-version", "AgAAAAEAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"),
        ("other-key", "AQAAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"),
        ("zeroes", "AQAAAAEAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"),
    ];
    let texts = texts.map(|(name, text)| (name.to_owned(), [&[0][..], text.as_bytes()].concat()));
    let choices = (1..=4).map(|seed| (format!("choices-{seed}"), choices(IS_CONTENT, seed)));
    texts.into_iter().chain(choices).collect()
}
