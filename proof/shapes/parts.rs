//! Sizes that are too much work for a proof to be run whole, and the smaller ones that stand for them.
//!
//! Rows of a batch do not see each other, which [`prove`](crate::prove) checks of the original. So what is wrong at the largest sizes
//! is wrong for a batch of two at all other largest sizes, or for the largest batch at a short length.

use kiln_graph::Graph;

use super::paper;
use super::{Point, Shapes};
use kiln_runtime::setting::PROOF;

/// Operations of a run that a quick proof takes whole: what two cores of a server do in a second or two. A number of the model and
/// its sizes, so that a proof is the same on every machine.
pub const ENOUGH: u64 = 100_000_000_000;

/// Rows of which one can see another.
const PAIR: usize = 2;

/// What lengths come down to at the largest batch: some words, longer than what kernels treat apart.
const SHORT: usize = 16;

/// Two points that stand for one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Parts {
    /// What counts the rows.
    pub batch: String,
    /// All sizes but the batch, which is of two rows.
    pub long: Point,
    /// The whole batch, at short lengths.
    pub wide: Point,
}

impl Parts {
    pub const LONG: &str = "largest, two rows";
    pub const WIDE: &str = "largest batch, short";

    /// What was proved instead of the point, in a sentence.
    pub fn describe(&self, shapes: &Shapes) -> String {
        let sizes = |point: &Point| {
            let own = point
                .iter()
                .filter(|(n, _)| !shapes.relations.contains_key(*n));
            let all: Vec<String> = own.map(|(n, size)| format!("{n}={size}")).collect();
            all.join(", ")
        };
        format!(
            "the largest sizes did not run at once, but at {} and at {}: rows of a batch do not see each other; {PROOF} full runs them",
            sizes(&self.long),
            sizes(&self.wide)
        )
    }
}

impl Shapes {
    /// The points that stand for one of more than `enough` operations; `None` where it runs whole: the typical sizes always do, and those
    /// of which no rows can be left out.
    pub(crate) fn parts(&self, graph: &Graph, point: &Point, enough: Option<u64>) -> Option<Parts> {
        let enough = enough?;
        if *point == self.typical() {
            return None;
        }
        let parts = self.halves(point)?;
        (paper::look(graph, self, point).work > enough).then_some(parts)
    }

    fn halves(&self, point: &Point) -> Option<Parts> {
        let own = |name: &str| !self.relations.contains_key(name);
        let rows = |(name, range): (&String, &super::Range)| {
            let serves = range.min <= PAIR && point.get(name).is_some_and(|&n| n > PAIR);
            (own(name) && self.is_batch(name) && serves).then(|| name.clone())
        };
        let batch = self.ranges.iter().find_map(rows)?;
        let mut long = point.clone();
        long.insert(batch.clone(), PAIR);
        self.complete(&mut long);
        let mut wide = point.clone();
        for (name, range) in &self.ranges {
            let step = self.steps.get(name).copied().unwrap_or(1);
            let short = (SHORT.div_ceil(step) * step).max(range.min);
            if *name != batch && own(name) && point.get(name).is_some_and(|&n| n > short) {
                wide.insert(name.clone(), short);
            }
        }
        self.complete(&mut wide);
        (wide != *point).then_some(Parts { batch, long, wide })
    }

    /// The points that are proved, by their names, and the parts among them.
    pub(crate) fn proved(
        &self,
        graph: &Graph,
        enough: Option<u64>,
    ) -> (Vec<(&'static str, Point)>, Option<Parts>) {
        let mut points = self.points();
        let last = points.last().filter(|(name, _)| *name == "largest");
        let parts = last.and_then(|(_, point)| self.parts(graph, point, enough));
        if let Some(parts) = &parts {
            points.pop();
            points.push((Parts::LONG, parts.long.clone()));
            points.push((Parts::WIDE, parts.wide.clone()));
        }
        (points, parts)
    }
}

#[cfg(test)]
mod tests {
    use kiln_graph::onnx;

    use super::*;
    use crate::shapes::{DimSpec, Shapes};

    fn graph() -> Graph {
        let text = r#"<ir_version: 8, opset_import: ["" : 17]>
            g (float[batch, seq, 4] x) => (float[batch, seq, 2] y)
            <float[4, 2] w = {1,2,3,4,5,6,7,8}> { y = MatMul(x, w) }"#;
        onnx::read_text(text).unwrap().graph
    }

    fn shapes(batch: &str, seq: &str) -> Shapes {
        let dims = [format!("batch={batch}"), format!("seq={seq}")];
        let dims: Vec<DimSpec> = dims.iter().map(|d| d.parse().unwrap()).collect();
        Shapes::new(&graph(), &dims, &[]).unwrap()
    }

    fn names(shapes: &Shapes, enough: Option<u64>) -> Vec<String> {
        let (points, _) = shapes.proved(&graph(), enough);
        let at = |p: &Point| format!("{}x{}", p["batch"], p["seq"]);
        points
            .iter()
            .map(|(n, p)| format!("{n} {}", at(p)))
            .collect()
    }

    #[test]
    fn the_largest_sizes_stand_in_two_parts_where_they_are_much_work() {
        let shapes = shapes("1:1:8", "1:64:128");
        // 8 x 128 x 4 x 2 products, of two operations each.
        let whole = ["smallest 1x1", "typical 1x64", "largest 8x128"];
        assert_eq!(names(&shapes, None), whole);
        assert_eq!(names(&shapes, Some(u64::MAX)), whole);
        let parts = [
            "smallest 1x1",
            "typical 1x64",
            "largest, two rows 2x128",
            "largest batch, short 8x16",
        ];
        assert_eq!(names(&shapes, Some(16_000)), parts);
        let (_, parts) = shapes.proved(&graph(), Some(0));
        let said = parts.unwrap().describe(&shapes);
        assert!(
            said.contains("at batch=2, seq=128 and at batch=8, seq=16"),
            "{said}"
        );
    }

    #[test]
    fn sizes_that_cannot_be_left_out_run_whole() {
        // No batch of two is served, nothing is longer than short, and the typical sizes are what is timed.
        for (batch, seq) in [
            ("4:4:8", "1:64:128"),
            ("1:1:8", "1:8:16"),
            ("8", "128"),
            ("1:1:2", "1:64:128"),
        ] {
            let names = names(&shapes(batch, seq), Some(0));
            assert!(names.iter().all(|n| !n.contains("rows")), "{names:?}");
        }
    }
}
