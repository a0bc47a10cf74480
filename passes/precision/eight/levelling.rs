//! How the quantizer gives attention's projections one scale (`projections.rs`, `level.rs`).

use kiln_graph::{Graph, ValueId};

use super::compensate::{Compensation, Without};
use super::level::{Level, Levelled, wide_rows};
use super::projections::Projections;
use super::qdq::Writer;
use super::quantize::{Quantizer, ranges_remark};
use super::reading::{Form, Reading};
use crate::core::pass::{Context, Remark};
use crate::precision::linear::Linear;
use crate::precision::numbers::weights::{self, Rounding};

impl Quantizer {
    /// The projections of attention that a layer is, where the target gains by them having one scale and no biases.
    pub(super) fn projections(
        &self,
        g: &Graph,
        layers: &[Linear],
        cx: &Context<'_>,
    ) -> Option<Projections> {
        let facts = cx.target.facts;
        let gains = facts.scales_columns_behind && facts.biases_keep_projections_apart;
        let [layer] = layers else { return None };
        let fixed = matches!(self.activation, Form::Static(_));
        let found = (gains && fixed).then(|| Projections::of(g, layer))??;
        found.stands_alone(g, layer, cx).then_some(found)
    }

    /// Writes attention's projections apart.
    pub(super) fn level(
        &self,
        g: &mut Graph,
        (layers, projections, reading): (&[Linear], &Projections, &Reading),
        matrix: Option<Vec<f32>>,
        (input, levelled): (ValueId, &mut Levelled),
        cx: &mut Context<'_>,
    ) -> usize {
        let ([layer], Some(choice), Form::Static(format)) =
            (layers, &reading.choice, self.activation)
        else {
            return 0;
        };
        // Queries have no bias that gives back what rounding takes from means.
        let offsets = cx.options.stats.get(&input).and_then(|s| reading.taken(s));
        let rows = [offsets.map(Without::Offsets), Some(Without::Means)];
        let compensations = rows.map(|without| {
            let stats = cx.options.stats.get(&input)?;
            let of = (cx.options.grams, input);
            let int8 = self.weight == Rounding::Int8;
            let without = without.filter(|_| int8)?;
            Compensation::of(of, stats, without, reading.factors.clone(), &[])
        });
        let level = matrix.ok_or(weights::Unfit::Type);
        let level =
            level.and_then(|m| Level::of(projections, m, reading, self.weight, &compensations));
        let level = match level {
            Ok(level) => level,
            Err(why) => {
                cx.kept(g, layer.node, why.to_string());
                return 0;
            }
        };
        let label = g.label(layer.node);
        let read = ranges_remark(g, layer, Some(choice), reading.smoothing);
        let mut write = Writer {
            g: &mut *g,
            pass: self.pass,
            layer: *layer,
        };
        let x = write.activation(choice, format);
        let to = (cx.options.stats, levelled);
        if level
            .write((g, self.pass), layer, projections, x, to)
            .is_none()
        {
            cx.kept(
                g,
                layer.node,
                "its output projection cannot take its bias".into(),
            );
            return 0;
        }
        cx.remarks.push(Remark::Quantized { layer: label });
        cx.remarks.extend(read);
        1
    }

    /// Rows of the weight that are multiplied apart by the quantized numbers, behind attention whose values were levelled.
    pub(super) fn wide_rows(
        &self,
        (input, layers): (ValueId, &[Linear]),
        matrices: &[Option<Vec<f32>>],
        reading: &Reading,
        levelled: &Levelled,
    ) -> Option<Vec<usize>> {
        let whole = reading.choice.as_ref()?.outliers.is_empty();
        let [Some(matrix)] = matrices else {
            return None;
        };
        let asked = whole && self.weight == Rounding::Int8 && levelled.divides(input);
        let moments = reading.moments.as_deref().filter(|_| asked)?;
        let columns = layers.first()?.columns;
        let rows = wide_rows(matrix, columns, moments);
        (!rows.is_empty()).then_some(rows)
    }
}
