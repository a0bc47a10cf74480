//! A prompt that is made.

use crate::generate::decoder::Decoder;
use crate::generate::ports::Feed;
use crate::parity;

pub(super) fn made_prompt(decoder: &Decoder, seed: u64, length: usize) -> Vec<i64> {
    let vocabulary = decoder.ports.feeds.iter().find_map(|(_, f)| match f {
        Feed::Tokens { vocabulary } => Some(*vocabulary),
        _ => None,
    });
    let spec = parity::InputSpec {
        name: "prompt".into(),
        dtype: kiln_graph::DType::I64,
        shape: vec![1, length],
        kind: parity::InputKind::TokenIds {
            upper: vocabulary.unwrap_or(1),
        },
    };
    let made = parity::make(&[spec], seed).unwrap_or_default();
    made.first()
        .and_then(|(_, t)| t.to_i64s())
        .unwrap_or_else(|| vec![0; length])
}
