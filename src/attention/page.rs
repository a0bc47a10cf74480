//! The page: one file with its data in it, that needs nothing else.

use serde_json::{Value, json};

use super::flags::{self, Flag};
use super::summary::{Kind, Layer, Summary};
use super::tokens::Tokens;

/// Weights that one page holds: two bytes each as base64, 43 MB of text, which browsers still open in seconds.
const WEIGHTS: usize = 16 << 20;

const TEMPLATE: &str = include_str!("page.html");

/// How many samples of these layers fit on the page; at least one.
pub(super) fn samples(layers: &[Layer]) -> usize {
    let one: usize = (layers.iter())
        .map(|l| l.heads.len() * l.queries * l.keys)
        .sum();
    let all = layers.iter().map(|l| l.samples).max().unwrap_or(0);
    (WEIGHTS / one.max(1)).clamp(1, all.max(1))
}

/// The page with the first `shown` samples.
pub(super) fn render(summary: &Summary, tokens: &Tokens, shown: usize) -> String {
    let layers: Vec<Value> = (summary.layers.iter())
        .map(|layer| {
            let shown = layer.samples.min(shown);
            let one = layer.heads.len() * layer.queries * layer.keys;
            let weights = layer.weights.values::<f32>().unwrap_or_default();
            let axis = |input: &Option<String>| {
                let all = input.as_deref().map(|name| tokens.samples(name));
                all.map(|samples| samples.iter().take(shown).collect::<Vec<_>>())
            };
            json!({
                "number": layer.layer,
                "name": layer.name,
                "kind": kind(layer.kind),
                "mask": layer.mask,
                "samples": shown,
                "queries": layer.queries,
                "keys": layer.keys,
                "queryTokens": axis(&layer.query_tokens),
                "keyTokens": axis(&layer.key_tokens),
                "heads": layer.heads.iter().map(|h| json!({
                    "number": h.head,
                    "entropy": h.entropy,
                    "evenness": h.evenness,
                    "rows": h.rows,
                    "empty": h.empty_rows,
                    "share": h.one_key_share,
                    "key": h.key,
                    "flags": h.flags,
                })).collect::<Vec<_>>(),
                "weights": base64(&steps(weights.get(..one * shown).unwrap_or_default())),
            })
        })
        .collect();
    let words = |flag: Flag| flag.words();
    let data = json!({
        "model": summary.model,
        "data": summary.data,
        "warnings": summary.warnings,
        "flags": {
            "empty-rows": words(Flag::EmptyRows),
            "uniform": words(Flag::Uniform),
            "one-key": words(Flag::OneKey),
        },
        "limits": {
            "emptySum": flags::EMPTY_SUM,
            "evenEntropy": flags::EVEN_ENTROPY,
            "oneKeyWeight": flags::ONE_KEY_WEIGHT,
            "mostRows": flags::MOST_ROWS,
            "fewestRows": flags::FEWEST_ROWS,
        },
        "layers": layers,
    });
    // Nothing inside a script may look like its end.
    let data = data.to_string().replace('<', "\\u003c");
    TEMPLATE.replacen("{{DATA}}", &data, 1)
}

pub(super) fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::SelfAttention => "self-attention",
        Kind::CrossAttention => "cross-attention",
    }
}

/// Weights in steps of 1 / 65535, little endian; NaN is 0.
fn steps(weights: &[f32]) -> Vec<u8> {
    let step = |w: &f32| ((w.clamp(0.0, 1.0) * 65535.0).round() as u16).to_le_bytes();
    weights.iter().flat_map(step).collect()
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let byte = |k: usize| u32::from(group.get(k).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for k in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * k)) as usize & 63];
            out.push(if k <= group.len() {
                char::from(digit)
            } else {
                '='
            });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_rfc() {
        let vectors = [
            "", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy",
        ];
        for (k, want) in vectors.into_iter().enumerate() {
            assert_eq!(base64(&b"foobar"[..k]), want);
        }
    }

    #[test]
    fn weights_become_steps() {
        let found = steps(&[0.0, 1.0, 0.5, f32::NAN, 1.0000001]);
        assert_eq!(found, [0, 0, 255, 255, 0, 128, 0, 0, 255, 255]);
    }

    #[test]
    fn the_page_needs_no_network() {
        for outside in ["http:", "https:", "src=", "@import", "url("] {
            assert!(!TEMPLATE.contains(outside), "{outside}");
        }
        assert_eq!(TEMPLATE.matches("{{DATA}}").count(), 1);
    }
}
