//! What a plan costs on paper: a bound from below on the time of its kernels, made of bytes, operations and launches.
//!
//! It compares plans of one model where nothing can be run. It is no latency: bytes are counted as if they came from the card's
//! memory at its full rate (a cache is faster), operations at the card's peak (nothing reaches it), and no kernel waits.

use std::iter;

use serde::Serialize;

use super::view::product;
use super::{ComputeCapability, DataType, Kernel, Kernels, Multiplied, Operand, Sizes};
use crate::card::{self, Card, Format};

/// Microseconds between the kernels of a CUDA graph, beside their own time.
///
/// NVIDIA, "Getting Started with CUDA Graphs", <https://developer.nvidia.com/blog/cuda-graphs/>: a kernel of 2.9 µs takes 3.4 µs
/// in a graph of them on a V100. The figures are as they are quoted of that page, which was not opened. Newer cards are faster by
/// less than a factor of two.
pub const LAUNCH_MICROSECONDS: f64 = 0.5;

/// What kernels cost on paper.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Price {
    /// Read and written, constants included.
    pub bytes: u64,
    /// Two for each multiplication and addition of products, convolutions and attention.
    pub operations: u64,
    pub launches: usize,
    /// For each kernel the time of its bytes or that of its operations, whichever is longer, and its launch.
    pub microseconds: f64,
}

/// Why a price is not known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoPrice {
    #[error("the builder did not list the engine's kernels")]
    NotListed,
    #[error("the sizes of kernel `{0}` are not known")]
    Sizes(String),
    #[error("how much kernel `{0}` multiplies is not known")]
    Operations(String),
    #[error("the datasheet of {card} gives no rate for what kernel `{kernel}` multiplies")]
    Rate { card: &'static str, kernel: String },
}

/// The price of all kernels that are launched, at these sizes.
///
/// # Errors
/// Where it is not known of one of them.
pub fn on_paper(kernels: &Kernels, sizes: &Sizes, card: &Card) -> Result<Price, NoPrice> {
    if kernels.is_empty() {
        return Err(NoPrice::NotListed);
    }
    let all = kernels.launched().map(|k| of_kernel(k, sizes, card));
    all.sum()
}

/// The price of one kernel.
///
/// # Errors
/// Where it is not known.
pub fn of_kernel(kernel: &Kernel, sizes: &Sizes, card: &Card) -> Result<Price, NoPrice> {
    let unknown = || NoPrice::Sizes(kernel.name.clone());
    let moved = sizes.moved(kernel).ok_or_else(unknown)?;
    let constants = sizes.constants(kernel).ok_or_else(unknown)?;
    let bytes = moved.saturating_add(constants);
    let operations = operations(kernel, sizes);
    let operations = operations.ok_or_else(|| NoPrice::Operations(kernel.name.clone()))?;
    let compute = match operations {
        0 => 0.0,
        n => {
            let rate = rate(kernel, card).ok_or_else(|| NoPrice::Rate {
                card: card.name,
                kernel: kernel.name.clone(),
            })?;
            n as f64 / (rate * 1e6)
        }
    };
    let memory = bytes as f64 / (card.gbytes * 1e3);
    Ok(Price {
        bytes,
        operations,
        launches: 1,
        microseconds: compute.max(memory) + LAUNCH_MICROSECONDS,
    })
}

impl iter::Sum for Price {
    fn sum<I: Iterator<Item = Price>>(prices: I) -> Price {
        prices.fold(Price::default(), |a, b| Price {
            bytes: a.bytes.saturating_add(b.bytes),
            operations: a.operations.saturating_add(b.operations),
            launches: a.launches + b.launches,
            microseconds: a.microseconds + b.microseconds,
        })
    }
}

/// A card whose price is told for engines of a capability, where no card is named.
pub fn usual(capability: ComputeCapability) -> Option<&'static Card> {
    card::find(match capability {
        ComputeCapability::Sm75 => "Tesla T4",
        ComputeCapability::Sm80 => "NVIDIA A100-SXM4-80GB",
        ComputeCapability::Sm86 => "NVIDIA A10",
        ComputeCapability::Sm89 => "NVIDIA L4",
        ComputeCapability::Sm120 => "NVIDIA GeForce RTX 5090",
        ComputeCapability::Current | ComputeCapability::Sm121 => return None,
    })
}

/// Operations of a kernel at these sizes: 0 if it multiplies no matrices, `None` where it does and how much is not known.
pub fn operations(kernel: &Kernel, sizes: &Sizes) -> Option<u64> {
    if !kernel.is_attention() && !kernel.is_product() {
        return Some(0);
    }
    let by_operands = match kernel.is_attention() {
        true => attention(kernel, sizes),
        false => product_of(kernel, sizes),
    };
    by_operands
        .or_else(|| sizes.multiplications(kernel))?
        .checked_mul(2)
}

fn product_of(kernel: &Kernel, sizes: &Sizes) -> Option<u64> {
    let result = kernel.outputs.iter().map(|o| sizes.elements(o));
    let result = result.collect::<Option<Vec<u64>>>()?.into_iter().max()?;
    match kernel.weight().map(|w| sizes.shape(w)) {
        Some(weight) if kernel.is_convolution() => convolution(&weight?, result),
        Some(weight) => linear(&kernel.inputs, sizes, &weight?, result),
        None => {
            let result = kernel.outputs.iter().map(|o| sizes.shape(o));
            let result: Vec<_> = result.collect::<Option<_>>()?;
            matrices(
                &shapes(&kernel.inputs, sizes)?,
                result.iter().max_by_key(|o| product(o))?,
            )
        }
    }
}

fn shapes(operands: &[Operand], sizes: &Sizes) -> Option<Vec<Vec<u64>>> {
    operands.iter().map(|o| sizes.shape(o)).collect()
}

/// Multiplications of an attention: scores of all queries with all keys, and as many weighted values.
///
/// Operands come in any order, and keys may be transposed and shared by heads. Queries, keys and values are as wide as the result;
/// what keys and values both have beside that is the number of keys.
fn attention(kernel: &Kernel, sizes: &Sizes) -> Option<u64> {
    let inputs = shapes(&kernel.inputs, sizes)?;
    let outputs = shapes(&kernel.outputs, sizes)?;
    let [.., queries, width] = outputs.first()?[..] else {
        return None;
    };
    let lengths = inputs.iter().filter_map(|shape| match shape[..] {
        [.., length, w] if w == width => Some(length),
        [.., w, length] if w == width => Some(length),
        _ => None,
    });
    let lengths: Vec<u64> = lengths.collect();
    let twice = |n: &&u64| lengths.iter().filter(|&m| m == *n).count() > 1;
    let other = lengths.iter().filter(|&&n| n != queries).find(twice);
    let keys = other.or_else(|| lengths.iter().find(twice))?;
    product(outputs.first()?)?
        .checked_mul(*keys)?
        .checked_mul(2)
}

/// Multiplications with a constant matrix, or several of one shape. Beside the factor, what is added behind the product is an
/// input, too: the factor is the one with as many rows as the result.
fn linear(inputs: &[Operand], sizes: &Sizes, weight: &[u64], result: u64) -> Option<u64> {
    let (several, matrix) = weight.split_at_checked(weight.len().checked_sub(2)?)?;
    let (a, b, several) = (matrix[0], matrix[1], product(several)?);
    let multiplied = |k: u64, n: u64| {
        let fits = |elements: u64| {
            let rows = elements.checked_div(k).filter(|r| r * k == elements)?;
            let written = rows.checked_mul(n)?;
            Some(written == result || written.checked_mul(several)? == result)
        };
        let wide = |o: &&Operand| o.shape.iter().any(|&d| u64::try_from(d) == Ok(k));
        let mut factors = inputs.iter().filter(wide);
        factors.any(|o| sizes.elements(o).and_then(fits) == Some(true))
    };
    let inner = match (multiplied(a, b), multiplied(b, a)) {
        (true, _) => a,
        (_, true) => b,
        _ => return None,
    };
    result.checked_mul(inner)
}

/// Multiplications of one activation with another.
fn matrices(inputs: &[Vec<u64>], result: &[u64]) -> Option<u64> {
    let last = |shape: &[u64]| match shape {
        [.., a, b] => Some((*a, *b)),
        _ => None,
    };
    let (m, n) = last(result)?;
    let elements = product(result)?;
    for (at, left) in inputs.iter().enumerate() {
        for right in &inputs[at + 1..] {
            let (Some((a, b)), Some((c, d))) = (last(left), last(right)) else {
                continue;
            };
            // The two may be transposed, and so may the result.
            for (k, rows, k2, columns) in [(b, a, c, d), (b, a, d, c), (a, b, c, d), (a, b, d, c)] {
                if k == k2 && ((rows, columns) == (m, n) || (columns, rows) == (m, n)) {
                    return elements.checked_mul(k);
                }
            }
        }
    }
    None
}

/// Multiplications of a convolution with weights of shape (channels out, channels in of a group, window…).
fn convolution(weight: &[u64], result: u64) -> Option<u64> {
    result.checked_mul(product(weight.get(1..)?)?)
}

/// 10¹² operations a second of the type that a kernel multiplies, FP32 as TF32 where the card has that. A factor of fewer bits
/// beside a float is converted before it is multiplied.
fn rate(kernel: &Kernel, card: &Card) -> Option<f64> {
    let Multiplied(a, b) = kernel.multiplies();
    let format = match (a, b) {
        (DataType::Int8, DataType::Int8) => Format::Int8,
        (DataType::Float8, DataType::Float8) => Format::Fp8,
        (DataType::Float32, _) | (_, DataType::Float32) => {
            return card.peak(Format::Tf32).or(card.peak(Format::Fp32));
        }
        (DataType::Other, _) => return None,
        _ => Format::Fp16,
    };
    card.peak(format)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operand(shape: &[i64], dtype: DataType) -> Operand {
        Operand {
            name: "x".into(),
            shape: shape.to_vec(),
            strides: Vec::new(),
            dtype,
        }
    }

    fn halves(shapes: &[&[i64]]) -> Vec<Operand> {
        let all = shapes.iter().map(|s| operand(s, DataType::Float16));
        all.collect()
    }

    fn kernel(
        kind: &str,
        name: &str,
        inputs: &[&[i64]],
        constants: &[&[i64]],
        outputs: &[&[i64]],
    ) -> Kernel {
        Kernel {
            name: name.into(),
            kind: kind.into(),
            inputs: halves(inputs),
            constants: halves(constants),
            outputs: halves(outputs),
            tactic: String::new(),
            nodes: Vec::new(),
        }
    }

    fn operations_of(
        kind: &str,
        name: &str,
        inputs: &[&[i64]],
        constants: &[&[i64]],
        output: &[i64],
    ) -> Option<u64> {
        let kernel = kernel(kind, name, inputs, constants, &[output]);
        operations(&kernel, &Sizes::default())
    }

    #[test]
    fn products_with_weights_are_counted() {
        let gemm = |inputs: &[&[i64]], weight: &[i64], output: &[i64]| {
            operations_of("gemm", "g", inputs, &[weight, &[1]], output)
        };
        let all = Some(2 * 64 * 384 * 1152);
        let one: &[i64] = &[1, 64, 384];
        assert_eq!(gemm(&[one], &[1, 384, 1152], &[1, 64, 1152]), all);
        assert_eq!(gemm(&[&[64, 384]], &[1152, 384], &[64, 1152]), all);
        // Three weights with one factor, and each with its own.
        let three = Some(3 * 2 * 64 * 384 * 384);
        assert_eq!(gemm(&[one], &[3, 384, 384], &[3, 64, 384]), three);
        let each: &[i64] = &[3, 64, 384];
        assert_eq!(gemm(&[each], &[3, 384, 384], &[3, 64, 384]), three);
        // A residual beside the factor, before it and behind it; 384 x 1536 is a square.
        let (residual, factor): (&[i64], &[i64]) = (&[1, 64, 384], &[1, 64, 1536]);
        let fused = Some(2 * 64 * 1536 * 384);
        for inputs in [[residual, factor], [factor, residual]] {
            assert_eq!(gemm(&inputs, &[1, 1536, 384], &[1, 64, 384]), fused);
        }
        // What it is not known of.
        assert_eq!(gemm(&[&[1, 65, 384]], &[384, 1152], &[1, 64, 1152]), None);
    }

    #[test]
    fn products_of_activations_are_counted() {
        let both = |a: &[i64], b: &[i64], y: &[i64]| operations_of("gemm", "g", &[a, b], &[], y);
        let all = Some(2 * 12 * 64 * 32 * 128);
        assert_eq!(both(&[12, 64, 32], &[12, 32, 128], &[12, 64, 128]), all);
        assert_eq!(both(&[12, 64, 32], &[12, 128, 32], &[12, 64, 128]), all);
        assert_eq!(both(&[12, 64, 32], &[12, 128, 32], &[12, 128, 64]), all);
        assert_eq!(both(&[12, 64, 32], &[12, 31, 128], &[12, 64, 128]), None);
    }

    #[test]
    fn attention_is_counted_whatever_the_order_of_its_operands() {
        let mha = |inputs: &[&[i64]], output: &[i64]| {
            operations_of("kgen", "_gemm_mha_v2", inputs, &[], output)
        };
        let (query, key, value): (&[i64], &[i64], &[i64]) =
            (&[12, 64, 32], &[12, 32, 128], &[12, 128, 32]);
        let mask: &[i64] = &[1, 1, 64, 128];
        let all = Some(4 * 12 * 64 * 128 * 32);
        assert_eq!(mha(&[query, key, mask, value], query), all);
        assert_eq!(mha(&[key, value, query], query), all);
        // As many queries as their width, and a mask that looks like keys.
        let own: &[i64] = &[12, 32, 32];
        let mask: &[i64] = &[1, 1, 32, 128];
        assert_eq!(
            mha(&[own, key, mask, value], own),
            Some(4 * 12 * 32 * 128 * 32)
        );
        // Two heads of keys for four of queries.
        let grouped: &[i64] = &[1, 2, 64, 16];
        let query: &[i64] = &[4, 64, 16];
        let mask: &[i64] = &[1, 1, 64, 64];
        let all = Some(4 * 4 * 64 * 64 * 16);
        assert_eq!(mha(&[grouped, grouped, query, mask], query), all);
        // One query of each of 64 samples, with keys in the order of time.
        let (query, key): (&[i64], &[i64]) = (&[64, 4, 1, 16], &[1, 64, 4, 16]);
        assert_eq!(mha(&[query, key, query], &[256, 1, 16]), Some(4 * 256 * 16));
    }

    #[test]
    fn convolutions_are_counted() {
        let input: &[i64] = &[1, 80, 300, 1];
        let weights: &[&[i64]] = &[&[64, 80, 3, 1], &[1, 64, 1, 1]];
        let output = [1, 64, 150, 1];
        for (kind, name) in [
            ("correlation", "conv"),
            ("runtime_fusion", "__myl_CorrDiv_1"),
        ] {
            let found = operations_of(kind, name, &[input], weights, &output);
            assert_eq!(found, Some(2 * 64 * 150 * 80 * 3));
        }
    }

    #[test]
    fn the_slower_of_bytes_and_operations_counts() {
        let card = card::find("NVIDIA L4").unwrap();
        let price = |kernel: &Kernel| of_kernel(kernel, &Sizes::default(), card);
        let near = |found: Price, wanted: f64| {
            let wanted = wanted + LAUNCH_MICROSECONDS;
            assert!((found.microseconds - wanted).abs() < 1e-9, "{found:?}");
        };
        // 121 TFLOP/s and 300 GB/s.
        let small = kernel("gemm", "g", &[&[1, 1000]], &[&[1000, 1000]], &[&[1, 1000]]);
        let found = price(&small).unwrap();
        assert_eq!((found.bytes, found.operations), (2_004_000, 2_000_000));
        near(found, 2_004_000.0 / 300e3);
        let large = kernel(
            "gemm",
            "g",
            &[&[10000, 1000]],
            &[&[1000, 1000]],
            &[&[10000, 1000]],
        );
        near(price(&large).unwrap(), 2e10 / 121e6);
        // Rows of a table.
        let gather = kernel("kgen", "g", &[&[8]], &[&[30000, 16]], &[&[8, 16]]);
        assert_eq!(price(&gather).unwrap().bytes, 2 * (8 + 128 + 128));
        let sum = on_paper(&Kernels(vec![small, gather]), &Sizes::default(), card);
        assert_eq!(sum.unwrap().launches, 2);
    }

    #[test]
    fn what_is_not_known_has_a_reason() {
        let card = card::find("Tesla T4").unwrap();
        let sizes = Sizes::default();
        let none = on_paper(&Kernels::default(), &sizes, card);
        assert_eq!(none, Err(NoPrice::NotListed));
        let open = kernel("kgen", "k", &[&[-1, 4]], &[], &[&[8, 4]]);
        let open = of_kernel(&open, &sizes, card);
        assert_eq!(open, Err(NoPrice::Sizes("k".into())));
        let strange = kernel("gemm", "k", &[&[7, 4]], &[&[5, 8]], &[&[8, 4]]);
        let strange = of_kernel(&strange, &sizes, card);
        assert_eq!(strange, Err(NoPrice::Operations("k".into())));
        let mut fp8 = kernel("gemm", "k", &[&[8, 4]], &[&[4, 8]], &[&[8, 8]]);
        fp8.inputs[0].dtype = DataType::Float8;
        fp8.constants[0].dtype = DataType::Float8;
        let fp8 = of_kernel(&fp8, &sizes, card);
        assert!(matches!(fp8, Err(NoPrice::Rate { .. })), "{fp8:?}");
    }

    #[test]
    fn every_usual_card_has_its_datasheet() {
        use ComputeCapability as C;
        let usual = C::ALL.into_iter().filter(|&c| usual(c).is_some());
        let wanted = [C::Sm75, C::Sm80, C::Sm86, C::Sm89, C::Sm120];
        assert_eq!(usual.collect::<Vec<_>>(), wanted);
    }
}
