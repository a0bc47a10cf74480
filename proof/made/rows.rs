//! Whether rows of a batch see each other: where they do not, few rows speak for many.

use bytes::BytesMut;
use kiln_graph::{Graph, Tensor};

use super::{Gathered, Maker, Named};
use crate::parity::{Preset, Tolerance, metrics};
use crate::prove::{Original, quantizes};
use crate::shapes::{Parts, Point, Shapes};

/// The points that are proved: parts of those that are much work, if the original's rows are independent. Gives the operations from
/// which on others may stand in parts, too.
pub(super) fn proved(
    session: &mut Original,
    maker: &Maker<'_>,
    graph: &Graph,
    shapes: &Shapes,
    enough: Option<u64>,
    out: &mut Gathered,
) -> (Vec<(&'static str, Point)>, Option<u64>) {
    let (points, parts) = shapes.proved(graph, enough);
    let Some(parts) = parts else {
        return (points, enough);
    };
    if independent(session, maker, graph, shapes, &parts) == Some(true) {
        out.parted = Some(parts.describe(shapes));
        return (points, enough);
    }
    out.warnings.push(format!(
        "rows of {} see each other in the original, or it does not run on one alone: the largest sizes are proved whole, which takes longer",
        parts.batch
    ));
    (shapes.points(), None)
}

/// Whether the last row of the largest batch is what it is alone; `None` if that cannot be told.
fn independent(
    session: &mut Original,
    maker: &Maker<'_>,
    graph: &Graph,
    shapes: &Shapes,
    parts: &Parts,
) -> Option<bool> {
    let mut single = parts.wide.clone();
    let fewest = shapes.ranges.get(&parts.batch)?.min.max(1);
    single.insert(parts.batch.clone(), fewest);
    let sizes = shapes.at(&single);
    let all = maker.at(shapes, &parts.wide).ok()?;
    let row = |(name, tensor): &(String, Tensor)| {
        let small = sizes.iter().find(|(n, _)| n == name);
        let dims = small.map_or(tensor.dims(), |(_, dims)| dims);
        Some((name.clone(), last(tensor, dims)?))
    };
    let one: Named = all.iter().map(row).collect::<Option<_>>()?;
    let whole = session.run(&all).ok()?;
    let alone = session.run(&one).ok()?;
    // Kernels for other sizes add up in another order; steps of integers turn that into more.
    let tolerance = Tolerance::from(match quantizes(graph) {
        true => Preset::Int8,
        false => Preset::Fp16,
    });
    let mut same = whole.iter().zip(&alone);
    Some(same.all(|((name, whole), (_, alone))| {
        let row = last(whole, alone.dims());
        let found = row.and_then(|row| metrics(&row, alone));
        found.is_some_and(|m| tolerance.check(name, &m).pass)
    }))
}

/// The last part of a tensor that has these dimensions; `None` if more than one differs, or the tensor is no multiple.
fn last(tensor: &Tensor, dims: &[usize]) -> Option<Tensor> {
    let whole = tensor.dims();
    if whole == dims {
        return Some(tensor.clone());
    }
    let mut differ = (0..whole.len()).filter(|&k| dims.get(k) != Some(&whole[k]));
    let (axis, rest) = (differ.next()?, differ.next());
    let (many, few) = (whole[axis], *dims.get(axis)?);
    if whole.len() != dims.len() || rest.is_some() || few == 0 || many % few != 0 {
        return None;
    }
    let outer: usize = whole[..axis].iter().product();
    if let Some(strings) = tensor.strings() {
        let (each, part) = (
            strings.len() / outer.max(1),
            strings.len() / many * few / outer.max(1),
        );
        let rows = strings.chunks(each.max(1));
        let kept = rows.flat_map(|row| row[row.len() - part..].iter().cloned());
        return Tensor::from_strings(dims.to_vec(), kept.collect()).ok();
    }
    let bytes = tensor.bytes();
    let each = bytes.len() / outer.max(1);
    let part = each / many * few;
    if each == 0 || tensor.dtype().bits() < 8 {
        return None;
    }
    let mut kept = BytesMut::with_capacity(outer * part);
    for row in bytes.chunks(each) {
        kept.extend_from_slice(&row[each - part..]);
    }
    Tensor::from_raw(tensor.dtype(), dims.to_vec(), kept.freeze()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_rows_of_any_axis_are_taken() {
        let tensor = Tensor::from_values(vec![2, 4], &[1f32, 2., 3., 4., 5., 6., 7., 8.]).unwrap();
        let row = last(&tensor, &[1, 4]).unwrap();
        assert_eq!(row.values::<f32>().unwrap(), [5., 6., 7., 8.]);
        let columns = last(&tensor, &[2, 2]).unwrap();
        assert_eq!(columns.values::<f32>().unwrap(), [3., 4., 7., 8.]);
        assert!(last(&tensor, &[2, 4]).unwrap().same_bits(&tensor));
        assert!(last(&tensor, &[1, 2]).is_none());
        assert!(last(&tensor, &[2, 3]).is_none());
        assert!(last(&tensor, &[4]).is_none());
    }
}
