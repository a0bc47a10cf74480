//! Einsum of two operands, written as the matrix product that it is.

use kiln_graph::infer::Expr;
use kiln_graph::{Attrs, Graph, NodeId, Op, Tensor, ValueId, ops};

use crate::core::pass::{Context, Exactness, Miss};
use crate::core::patch::{Patch, Ref};
use crate::core::rule::Rule;

#[derive(Debug)]
pub struct ExpandEinsum;

impl Rule for ExpandEinsum {
    fn name(&self) -> &'static str {
        "expand-einsum"
    }

    fn about(&self) -> &'static str {
        "write Einsum of one or two operands as Transpose and MatMul"
    }

    fn details(&self) -> String {
        "`bhid,bhjd->bhij` is the product of queries and keys, `ibh,hnd->ibnd` a linear layer whose columns are told apart \
         as heads. As MatMul they are what fusions, quantization and runtimes know. Labels that only one operand has and \
         the result has not, and labels that an operand has twice, are left alone."
            .into()
    }

    fn exactness(&self) -> Exactness {
        Exactness::Rounding
    }

    fn since(&self) -> i64 {
        13
    }

    fn roots(&self) -> &[&'static str] {
        &["Einsum"]
    }

    fn needs_facts(&self) -> bool {
        true
    }

    fn rewrite(&self, g: &Graph, root: NodeId, cx: &Context<'_>) -> Result<Patch, Miss> {
        let einsum = ops::Einsum::of(g, root).ok_or_else(Miss::none)?;
        let output = einsum.output(0).ok_or_else(Miss::none)?;
        let terms = Terms::of(einsum.equation())
            .ok_or_else(|| Miss::because("its equation is no plain one"))?;
        let float = |&v: &ValueId| cx.facts.ty(v).dtype().is_some_and(|d| d.is_float());
        let operands: Vec<ValueId> = g.node(root).inputs().iter().flatten().copied().collect();
        if !operands.iter().all(float) {
            return Err(Miss::because("its numbers are no floats"));
        }
        let mut patch = Patch::new();
        let made = match (operands.as_slice(), terms.operands.as_slice()) {
            (&[x], [labels]) => rearranged(&mut patch, x.into(), labels, &terms.result)
                .ok_or_else(|| Miss::because("it sums, or repeats a label"))?,
            (&[a, b], [left, right]) => {
                let a = Side::of(g, cx, a, left)?;
                let b = Side::of(g, cx, b, right)?;
                // A weight is the second operand of a linear layer.
                let (a, b) = if a.constant { (b, a) } else { (a, b) };
                product(&mut patch, g, &a, &b, &terms.result)?
            }
            _ => return Err(Miss::because("it has more than two operands")),
        };
        patch.replace(output, made);
        Ok(patch)
    }
}

/// An equation: the labels of each operand and of the result, each at most once.
struct Terms {
    operands: Vec<Vec<char>>,
    result: Vec<char>,
}

impl Terms {
    fn of(equation: &str) -> Option<Terms> {
        let plain: String = equation.chars().filter(|c| !c.is_whitespace()).collect();
        let (operands, result) = match plain.split_once("->") {
            Some((operands, result)) => (operands, Some(result)),
            None => (plain.as_str(), None),
        };
        let labels = |term: &str| -> Option<Vec<char>> {
            let labels: Vec<char> = term.chars().collect();
            let once = |(k, c): (usize, &char)| c.is_ascii_alphabetic() && !labels[..k].contains(c);
            labels.iter().enumerate().all(once).then_some(labels)
        };
        let operands: Vec<Vec<char>> = operands.split(',').map(labels).collect::<Option<_>>()?;
        let result = match result {
            Some(result) => labels(result)?,
            None => implied(&operands),
        };
        let known = |c: &char| operands.iter().any(|o| o.contains(c));
        result
            .iter()
            .all(known)
            .then_some(Terms { operands, result })
    }
}

/// Without an arrow, the result has what stands in one operand, in the order of the alphabet.
fn implied(operands: &[Vec<char>]) -> Vec<char> {
    let mut all: Vec<char> = operands.concat();
    all.sort_unstable();
    let once = |c: &&char| all.iter().filter(|d| d == c).count() == 1;
    all.iter().filter(once).copied().collect()
}

struct Side<'a> {
    value: ValueId,
    labels: &'a [char],
    dims: Vec<Expr>,
    constant: bool,
}

impl<'a> Side<'a> {
    fn of(
        g: &Graph,
        cx: &Context<'_>,
        value: ValueId,
        labels: &'a [char],
    ) -> Result<Side<'a>, Miss> {
        let dims = cx.facts.dims(value).filter(|d| d.len() == labels.len());
        Ok(Side {
            value,
            labels,
            dims: dims
                .ok_or_else(|| Miss::at(value, 1, "its dimensions are unknown"))?
                .to_vec(),
            constant: g.constant(value).is_some(),
        })
    }

    fn has(&self, label: char) -> bool {
        self.labels.contains(&label)
    }

    fn size(&self, label: char) -> Option<&Expr> {
        self.dims.get(self.labels.iter().position(|l| *l == label)?)
    }

    /// The numbers of dimensions that are joined; one of them may be open.
    fn joined(&self, labels: &[char]) -> Option<i64> {
        let sizes = labels.iter().map(|&l| self.size(l)?.as_i64());
        sizes.into_iter().try_fold(1i64, |n, s| n.checked_mul(s?))
    }

    /// The operand with its labels in this order, and these groups of them joined.
    fn grouped(&self, patch: &mut Patch, g: &Graph, groups: &[Vec<char>]) -> Result<Ref, Miss> {
        let order = groups.concat();
        let open = || Miss::at(self.value, 1, "sizes that would be joined are open");
        let target: Vec<i64> = if groups.iter().all(|group| group.len() == 1) {
            Vec::new()
        } else {
            let alone = groups.iter().take_while(|group| group.len() == 1).count();
            let target: Vec<i64> = groups
                .iter()
                .enumerate()
                .map(|(k, group)| match self.joined(group) {
                    // Where no group was joined before, 0 copies.
                    None if k < alone => 0,
                    size => size.unwrap_or(-1),
                })
                .collect();
            if target.iter().filter(|n| **n == -1).count() > 1 {
                return Err(open());
            }
            target
        };
        if let Some(tensor) = g.constant(self.value)
            && let Some(made) = rearranged_constant(tensor, self.labels, groups)
        {
            return Ok(patch.constant(made));
        }
        let turned = rearranged(patch, self.value.into(), self.labels, &order).ok_or_else(open)?;
        Ok(match target.is_empty() {
            true => turned,
            false => reshaped(patch, turned, &target),
        })
    }
}

fn reshaped(patch: &mut Patch, x: Ref, target: &[i64]) -> Ref {
    let shape = patch.constant(Tensor::vector(target));
    patch.node(Op::onnx("Reshape"), [x, shape], Attrs::new())
}

/// A weight as a matrix, where at most its two groups change places.
fn rearranged_constant(tensor: &Tensor, labels: &[char], groups: &[Vec<char>]) -> Option<Tensor> {
    let [rows, columns] = groups else { return None };
    let size = |group: &[char]| -> Option<usize> {
        let at = |l: &char| {
            tensor
                .dims()
                .get(labels.iter().position(|m| m == l)?)
                .copied()
        };
        group.iter().try_fold(1usize, |n, l| n.checked_mul(at(l)?))
    };
    let (r, c) = (size(rows)?, size(columns)?);
    if groups.concat() == labels {
        return tensor.reshaped(&[r, c][..]).ok();
    }
    let swapped = [columns.clone(), rows.clone()].concat() == labels;
    match swapped {
        true => tensor.reshaped(&[c, r][..]).ok()?.transposed(),
        false => None,
    }
}

/// A value with its dimensions in another order; `None` where the order is not a permutation.
fn rearranged(patch: &mut Patch, x: Ref, from: &[char], to: &[char]) -> Option<Ref> {
    if from.len() != to.len() {
        return None;
    }
    let place = |l: &char| Some(from.iter().position(|f| f == l)? as i64);
    let perm: Vec<i64> = to.iter().map(place).collect::<Option<_>>()?;
    let same = perm.iter().enumerate().all(|(k, &p)| k as i64 == p);
    Some(match same {
        true => x,
        false => patch.node(Op::onnx("Transpose"), [x], Attrs::new().with("perm", perm)),
    })
}

fn product(
    patch: &mut Patch,
    g: &Graph,
    a: &Side<'_>,
    b: &Side<'_>,
    result: &[char],
) -> Result<Ref, Miss> {
    let all = |keep: &dyn Fn(char) -> bool, of: &[char]| -> Vec<char> {
        of.iter().copied().filter(|&l| keep(l)).collect()
    };
    let batch = all(&|l| a.has(l) && b.has(l), result);
    let rows = all(&|l| a.has(l) && !b.has(l), result);
    let columns = all(&|l| !a.has(l) && b.has(l), result);
    let of = if b.constant { b.labels } else { a.labels };
    let summed = all(&|l| a.has(l) && b.has(l) && !result.contains(&l), of);
    let used = batch.len() + summed.len();
    if a.labels.len() != used + rows.len() || b.labels.len() != used + columns.len() {
        return Err(Miss::because("it sums over one operand alone"));
    }
    if rows.is_empty() || columns.is_empty() || summed.is_empty() {
        return Err(Miss::because("it is no product of matrices"));
    }
    // A size of 1 would stand for all of the other operand.
    let differs = |&l: &char| match (a.size(l), b.size(l)) {
        (Some(x), Some(y)) => x.equals(y) != Some(true),
        _ => true,
    };
    if summed.iter().any(differs) {
        return Err(Miss::because("the sizes that it sums over may differ"));
    }
    if !batch.is_empty() && rows.len() > 1 {
        return Err(Miss::because("its rows are several dimensions"));
    }
    let single = |labels: &[char]| labels.iter().map(|&l| vec![l]).collect::<Vec<_>>();
    let left = [single(&batch), single(&rows), vec![summed.clone()]].concat();
    let right = [single(&batch), vec![summed, columns.clone()]].concat();
    let x = a.grouped(patch, g, &left)?;
    let y = b.grouped(patch, g, &right)?;
    let mut made = patch.node(Op::onnx("MatMul"), [x, y], Attrs::new());
    if columns.len() > 1 {
        let sizes = columns.iter().map(|&l| b.size(l)?.as_i64());
        let sizes: Vec<i64> = sizes.map(|s| s.unwrap_or(-1)).collect();
        if sizes.iter().filter(|n| **n == -1).count() > 1 {
            return Err(Miss::because("sizes of its columns are open"));
        }
        let lead = vec![0; batch.len() + rows.len()];
        made = reshaped(patch, made, &[lead, sizes].concat());
    }
    let order = [batch, rows, columns].concat();
    rearranged(patch, made, &order, result).ok_or_else(Miss::none)
}
