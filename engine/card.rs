//! What cards can do at most, the roof of the roofline.
//!
//! Each row was compared in November 2026 with its document's table as it is quoted elsewhere, by figure; the comment above a
//! document says where. The documents' own files were not opened. Two traps of these documents: most data-centre tables
//! print tensor rates with structured sparsity, twice the dense rate; and GeForce cards have two rates for FP16 and FP8, of
//! which that with sums in FP32 is half the other.

use serde::Serialize;

use crate::Work;

/// The peaks of a card, without structured sparsity, at its boost clock. A card that runs at lower clocks, as its power limit
/// may have it, does less.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Card {
    /// As the driver names it.
    pub name: &'static str,
    /// 10¹² operations a second, by the format that is multiplied, with sums in FP32 (INT32 for INT8). BF16 is as FP16.
    pub fp32: f64,
    pub tf32: Option<f64>,
    pub fp16: f64,
    pub int8: f64,
    pub fp8: Option<f64>,
    /// 10⁹ bytes a second of the card's memory.
    pub gbytes: f64,
    /// The document that the figures are of. Where it gives them with sparsity only, they are halved here.
    pub source: &'static str,
}

/// The format that products are computed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    Fp32,
    Tf32,
    Fp16,
    Int8,
    Fp8,
}

// SXM and PCIe: https://archive-lib.hpctech.co.jp/gpuproduct/nvidia-h100.html, and NVIDIA/NeMo,
// nemo/lightning/pytorch/callbacks/speed_monitor.py. With sparsity.
const H100: &str = "NVIDIA H100 Tensor Core GPU, datasheet, \
    https://resources.nvidia.com/en-us-tensor-core/nvidia-tensor-core-gpu-datasheet";
// The page's table, columns SXM and NVL, quoted in several places; it gives 60, 835, 1671, 3341 and 3341 with sparsity.
const H100_NVL: &str =
    "NVIDIA H100 GPU, product page, https://www.nvidia.com/en-us/data-center/h100/";
// The datasheet 3367400.JUL24 and the page agree on SXM. That datasheet prints SXM's rates for NVL too; the page has NVL's own,
// those of the H100 NVL.
const H200: &str = "NVIDIA H200 GPU, product page, https://www.nvidia.com/en-us/data-center/h200/";
// Dense and sparse side by side. https://glennklockwood.com/garden/processors/A100, and NVIDIA/NeMo as above.
const A100: &str = "NVIDIA A100 Tensor Core GPU, datasheet, https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/\
    a100/pdf/nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf";
// Dense and sparse side by side. NVIDIA/NeMo as above; memory and INT8: Tensward/tensward, its table of datasheets.
const A10: &str = "NVIDIA A10 GPU, datasheet, https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/\
    a10/pdf/a10-datasheet.pdf";
// With sparsity. ScalingIntelligence/KernelBench, its list of GPUs; Tensward/tensward.
const L4: &str =
    "NVIDIA L4 Tensor Core GPU, product page, https://www.nvidia.com/en-us/data-center/l4/";
// Dense and sparse side by side (2841316.AUG23). ScalingIntelligence/KernelBench; Tensward/tensward.
const L40S: &str = "NVIDIA L40S GPU, datasheet, https://www.nvidia.com/en-us/data-center/l40s/";
// NVIDIA/NeMo as above. The datasheet says 300 GB/s, the product page 320 and more, the Ada whitepaper (table 5) 320.
const T4: &str = "NVIDIA T4 Tensor Core GPU, datasheet, https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/\
    tesla-t4/t4-tensor-core-datasheet-951643.pdf";
// Table 9: 35.6 TF32, 71 FP16 with sums in FP32 (142 in FP16), 284 INT8. Tensward/tensward.
const AMPERE: &str = "NVIDIA Ampere GA102 GPU Architecture, whitepaper 2.0, \
    https://www.nvidia.com/content/PDF/nvidia-ampere-ga-102-gpu-architecture-whitepaper-v2.pdf";
// Table 2: 82.6 TF32, 165.2 FP16 and 330.3 FP8 with sums in FP32, 660.6 INT8. Tensward/tensward;
// https://waredb.com/processor/nvidia-geforce-rtx-4090.
const ADA: &str = "NVIDIA Ada GPU Architecture, whitepaper 2.1, https://images.nvidia.com/aem-dam/Solutions/Data-Center/l4/\
    nvidia-ada-gpu-architecture-whitepaper-v2.1.pdf";
// Table 3: 104.8 TF32, 209.5 FP16 and 419 FP8 with sums in FP32, 838 INT8. lamonoai/gpumap, nvidia/GPU.md, rounded.
const BLACKWELL: &str = "NVIDIA RTX Blackwell GPU Architecture, whitepaper, \
    https://images.nvidia.com/aem-dam/Solutions/geforce/blackwell/nvidia-rtx-blackwell-gpu-architecture.pdf";

/// Peaks in the order of [`Card`]'s fields; 0 where the card has no such format.
const fn card(name: &'static str, peaks: [f64; 5], gbytes: f64, source: &'static str) -> Card {
    let [fp32, tf32, fp16, int8, fp8] = peaks;
    Card {
        name,
        fp32,
        tf32: if tf32 > 0.0 { Some(tf32) } else { None },
        fp16,
        int8,
        fp8: if fp8 > 0.0 { Some(fp8) } else { None },
        gbytes,
        source,
    }
}

/// Cards by name. A100s differ in their memory alone.
pub const CARDS: &[Card] = &[
    card(
        "NVIDIA H200",
        [67.0, 494.5, 989.5, 1979.0, 1979.0],
        4800.0,
        H200,
    ),
    card(
        "NVIDIA H200 NVL",
        [60.0, 417.5, 835.5, 1670.5, 1670.5],
        4800.0,
        H200,
    ),
    card(
        "NVIDIA H100 80GB HBM3",
        [67.0, 494.5, 989.5, 1979.0, 1979.0],
        3350.0,
        H100,
    ),
    card(
        "NVIDIA H100 NVL",
        [60.0, 417.5, 835.5, 1670.5, 1670.5],
        3900.0,
        H100_NVL,
    ),
    card(
        "NVIDIA H100 PCIe",
        [51.0, 378.0, 756.5, 1513.0, 1513.0],
        2000.0,
        H100,
    ),
    card(
        "NVIDIA A100-SXM4-80GB",
        [19.5, 156.0, 312.0, 624.0, 0.0],
        2039.0,
        A100,
    ),
    card(
        "NVIDIA A100 80GB PCIe",
        [19.5, 156.0, 312.0, 624.0, 0.0],
        1935.0,
        A100,
    ),
    card(
        "NVIDIA A100-SXM4-40GB",
        [19.5, 156.0, 312.0, 624.0, 0.0],
        1555.0,
        A100,
    ),
    card(
        "NVIDIA A100-PCIE-40GB",
        [19.5, 156.0, 312.0, 624.0, 0.0],
        1555.0,
        A100,
    ),
    card("NVIDIA A10", [31.2, 62.5, 125.0, 250.0, 0.0], 600.0, A10),
    card("NVIDIA L4", [30.3, 60.0, 121.0, 242.5, 242.5], 300.0, L4),
    card(
        "NVIDIA L40S",
        [91.6, 183.0, 362.05, 733.0, 733.0],
        864.0,
        L40S,
    ),
    card("Tesla T4", [8.1, 0.0, 65.0, 130.0, 0.0], 320.0, T4),
    card(
        "NVIDIA GeForce RTX 3090",
        [35.6, 35.6, 71.0, 284.0, 0.0],
        936.0,
        AMPERE,
    ),
    card(
        "NVIDIA GeForce RTX 4090",
        [82.6, 82.6, 165.2, 660.6, 330.3],
        1008.0,
        ADA,
    ),
    card(
        "NVIDIA GeForce RTX 5090",
        [104.8, 104.8, 209.5, 838.0, 419.0],
        1792.0,
        BLACKWELL,
    ),
];

/// The card that the driver names so, if its datasheet is in the table.
pub fn find(name: &str) -> Option<&'static Card> {
    CARDS.iter().find(|c| c.name == name)
}

impl Card {
    /// 10¹² operations a second in this format; `None` if the card does not have it.
    pub fn peak(&self, format: Format) -> Option<f64> {
        match format {
            Format::Fp32 => Some(self.fp32),
            Format::Tf32 => self.tf32,
            Format::Fp16 => Some(self.fp16),
            Format::Int8 => Some(self.int8),
            Format::Fp8 => self.fp8,
        }
    }

    /// The shortest time in milliseconds that the work can take: that of the operations, or that of the bytes.
    pub fn limit_ms(&self, work: &Work, format: Format) -> Option<f64> {
        let compute = work.flops as f64 / (self.peak(format)? * 1e12);
        let memory = work.bytes() as f64 / (self.gbytes * 1e9);
        Some(compute.max(memory) * 1e3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_card_has_its_source_and_one_row() {
        for (at, card) in CARDS.iter().enumerate() {
            assert!(card.source.contains("https://"), "{}", card.name);
            assert!(CARDS[..at].iter().all(|c| c.name != card.name));
        }
    }

    /// The units of each architecture fix the ratios between formats. A rate with sparsity among dense ones, a row that is
    /// sparse as a whole, and a GeForce rate with sums in FP16 are each off by two.
    #[test]
    fn the_ratios_between_formats_are_those_of_the_architectures() {
        let near = |found: f64, wanted: f64, what: &str| {
            // Datasheets round, and FP32 is at another boost clock than the tensor cores on Hopper.
            assert!(
                (found / wanted - 1.0).abs() < 0.15,
                "{what}: {found} for {wanted}"
            );
        };
        for card in CARDS {
            let geforce = card.name.contains("GeForce");
            let per_fp32 = match card.name {
                _ if geforce => 2.0,
                n if n.contains("H100") || n.contains("H200") || n.contains("A100") => 16.0,
                n if n.contains("T4") => 8.0,
                _ => 4.0,
            };
            near(card.fp16 / card.fp32, per_fp32, card.name);
            let per_fp16 = if geforce { 4.0 } else { 2.0 };
            near(card.int8 / card.fp16, per_fp16, card.name);
            if let Some(tf32) = card.tf32 {
                near(card.fp16 / tf32, 2.0, card.name);
            }
            if let Some(fp8) = card.fp8 {
                near(fp8 / card.fp16, 2.0, card.name);
            }
        }
    }

    #[test]
    fn the_slower_limit_counts() {
        let card = find("NVIDIA H100 80GB HBM3").unwrap();
        let work = |flops, weight_bytes| Work {
            flops,
            weight_bytes,
            ..Work::default()
        };
        // BERT-base, batch 1, 128 tokens: 22 GFLOP and 170 MB of FP16 weights are bound by memory.
        let limit = card.limit_ms(&work(22_000_000_000, 170_000_000), Format::Fp16);
        assert!((limit.unwrap() - 170.0 / 3350.0).abs() < 1e-9);
        let limit = card
            .limit_ms(&work(989_500_000_000, 1), Format::Fp16)
            .unwrap();
        assert!((limit - 1.0).abs() < 1e-9);
        let t4 = find("Tesla T4").unwrap();
        assert_eq!(t4.limit_ms(&work(1, 1), Format::Fp8), None);
        assert_eq!(find("some other card"), None);
    }
}
