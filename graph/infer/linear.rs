//! Contractions, reductions, windows and the other operators that compute.

use smallvec::SmallVec;

use super::call::{Axes, Call, Outs, one, sole, text};
use super::expr::Expr;
use super::fact::{Dims, Fact, known_count};

pub(super) fn matmul(call: &Call<'_>) -> Option<Outs> {
    product(call, call.dims(0)?, call.dims(1)?)
}

/// The product of two stacks of matrices, vectors allowed.
pub(super) fn product(call: &Call<'_>, a: &[Expr], b: &[Expr]) -> Option<Outs> {
    let (Some((inner_a, rows)), Some((b_last, b_rest))) = (a.split_last(), b.split_last()) else {
        call.conflict("a scalar is multiplied as a matrix");
        return None;
    };
    let (inner_b, columns, b_batch) = match b_rest.split_last() {
        Some((inner, batch)) => (inner, Some(b_last), batch),
        None => (b_last, None, b_rest),
    };
    if inner_a.equals(inner_b) == Some(false) {
        call.conflict(format!(
            "inner dimensions {inner_a} and {inner_b} of {} and {} differ",
            text(a),
            text(b)
        ));
    } else {
        call.demands.equal(inner_a, inner_b);
    }
    let (row, a_batch) = match rows.split_last() {
        Some((row, batch)) => (Some(row), batch),
        None => (None, rows),
    };
    let mut dims = call.broadcast(a_batch, b_batch)?;
    dims.extend(row.cloned());
    dims.extend(columns.cloned());
    Some(one(dims))
}

/// `FusedMatMul`: the last two dimensions of either side may be swapped.
pub(super) fn fused_matmul(call: &Call<'_>) -> Option<Outs> {
    if call.int("transBatchA")? != 0 || call.int("transBatchB")? != 0 {
        return None;
    }
    let (mut a, mut b): (Dims, Dims) = (call.dims(0)?.into(), call.dims(1)?.into());
    for (dims, name) in [(&mut a, "transA"), (&mut b, "transB")] {
        let n = dims.len();
        if call.int(name)? != 0 && n >= 2 {
            dims.swap(n - 1, n - 2);
        }
    }
    product(call, &a, &b)
}

pub(super) fn gemm(call: &Call<'_>) -> Option<Outs> {
    let side = |k: usize, name: &str| {
        let swap = call.int(name)? != 0;
        match call.dims(k)? {
            [a, b] if swap => Some((b.clone(), a.clone())),
            [a, b] => Some((a.clone(), b.clone())),
            other => {
                call.conflict(format!("operand {k} has rank {} and not 2", other.len()));
                None
            }
        }
    };
    let (m, k_a) = side(0, "transA")?;
    let (k_b, n) = side(1, "transB")?;
    if k_a.equals(&k_b) == Some(false) {
        call.conflict(format!("inner dimensions {k_a} and {k_b} differ"));
    } else {
        call.demands.equal(&k_a, &k_b);
    }
    Some(one(SmallVec::from_iter([m, n])))
}

pub(super) fn reduce(call: &Call<'_>) -> Option<Outs> {
    let keep = call.int("keepdims")? != 0;
    let input = call.input(0)?;
    let dims = input.dims.as_deref()?;
    let axes = match call.axes(1, dims.len())? {
        Axes::Unknown if keep => return Some(one(call.fresh.shape(dims.len()))),
        Axes::Unknown => return None,
        Axes::At(axes) if !axes.is_empty() => axes,
        _ if call.int("noop_with_empty_axes")? != 0 => return call.like(0),
        _ => (0..dims.len()).collect(),
    };
    let out = without(dims, &axes, keep);
    let whole = axes.len() == dims.len();
    let values = input
        .values
        .as_deref()
        .filter(|v| whole && !v.is_empty())
        .and_then(|values| {
            let join = match call.node.op().name() {
                "ReduceProd" => Expr::mul,
                "ReduceSum" => Expr::add,
                "ReduceMax" => Expr::maximum,
                "ReduceMin" => Expr::minimum,
                _ => return None,
            };
            let (first, rest) = values.split_first()?;
            Some(vec![
                rest.iter().try_fold(first.clone(), |a, b| join(&a, b))?,
            ])
        });
    Some(sole(Fact::of_values(out, values)))
}

/// `ArgMax` and `ArgMin`.
pub(super) fn arg(call: &Call<'_>) -> Option<Outs> {
    let dims = call.dims(0)?;
    let axis = call.axis(call.int("axis")?, dims.len())?;
    Some(one(without(dims, &[axis], call.int("keepdims")? != 0)))
}

fn without(dims: &[Expr], axes: &[usize], keep: bool) -> Dims {
    let reduced = dims
        .iter()
        .enumerate()
        .filter_map(|(k, dim)| match axes.contains(&k) {
            false => Some(dim.clone()),
            true => keep.then(|| Expr::from(1)),
        });
    reduced.collect()
}

/// Normalizations: the first output like the input, statistics with 1 from `axis` on, then copies of the input's shape.
pub(super) fn norm(call: &Call<'_>, axis: i64) -> Option<Outs> {
    let dims = call.dims(0)?;
    let axis = call.axis(axis, dims.len())?;
    let statistics: Dims = (dims.iter().enumerate())
        .map(|(k, d)| if k >= axis { Expr::from(1) } else { d.clone() })
        .collect();
    let full = || Fact::of_dims(dims.into());
    let mean = Fact::of_dims(statistics);
    Some(SmallVec::from_iter([full(), mean.clone(), mean, full()]))
}

/// Sizes of one spatial dimension's window.
struct Window {
    stride: i64,
    dilation: i64,
    /// Padding in front plus behind; `None` pads so that the size is kept (but for the stride).
    pads: Option<i64>,
}

/// Strides, dilations and paddings of `rank` spatial dimensions.
fn windows(call: &Call<'_>, rank: usize) -> Option<Vec<Window>> {
    let ones = vec![1; rank];
    let strides = call.list("strides")?.unwrap_or(&ones);
    let dilations = call.list("dilations")?.unwrap_or(&ones);
    let zeros = vec![0; 2 * rank];
    let pads = call.list("pads")?.unwrap_or(&zeros);
    let auto = call.node.attrs().str("auto_pad").unwrap_or("NOTSET");
    if strides.len() != rank || dilations.len() != rank || pads.len() != 2 * rank {
        call.conflict(format!(
            "strides, dilations or pads do not fit {rank} spatial dimensions"
        ));
        return None;
    }
    if strides.iter().chain(dilations).any(|&n| n < 1) {
        call.conflict("strides and dilations must be positive");
        return None;
    }
    (0..rank)
        .map(|k| {
            let pads = match auto {
                "SAME_UPPER" | "SAME_LOWER" => None,
                "VALID" => Some(0),
                _ => Some(pads[k].checked_add(pads[k + rank])?),
            };
            Some(Window {
                stride: strides[k],
                dilation: dilations[k],
                pads,
            })
        })
        .collect()
}

impl Window {
    /// `dilation * (kernel - 1) + 1`
    fn extent(&self, kernel: &Expr) -> Option<Expr> {
        kernel
            .sub(&1.into())?
            .mul(&self.dilation.into())?
            .add(&1.into())
    }

    /// A window that is longer than what it slides over, padding included, gives nothing.
    fn fits(&self, call: &Call<'_>, input: &Expr, kernel: &Expr) {
        let room = |pads: i64| input.add(&pads.into())?.sub(&self.extent(kernel)?);
        if self
            .pads
            .and_then(room)
            .is_some_and(|r| r.bounds().hi.is_some_and(|hi| hi < 0))
        {
            call.conflict(format!("a window of {kernel} slides over {input}"));
        }
    }

    fn size(&self, input: &Expr, kernel: &Expr, ceil: bool) -> Option<Expr> {
        let stride = Expr::from(self.stride);
        let Some(pads) = self.pads else {
            return input.ceil_div(&stride);
        };
        let span = input.add(&pads.into())?.sub(&self.extent(kernel)?)?;
        if !ceil || self.stride == 1 {
            return span.floor_div(&stride)?.add(&1.into());
        }
        // Whether a last, partial window counts depends on where it starts: only known sizes say.
        (span.as_i64()?.checked_rem(self.stride)? == 0)
            .then(|| span.floor_div(&stride)?.add(&1.into()))
            .flatten()
    }

    /// The size that a convolution would turn into `input`.
    fn transposed(&self, input: &Expr, kernel: &Expr, extra: i64) -> Option<Expr> {
        let stride = Expr::from(self.stride);
        let Some(pads) = self.pads else {
            return input.mul(&stride);
        };
        let spread = input.sub(&1.into())?.mul(&stride)?;
        spread
            .add(&self.extent(kernel)?)?
            .add(&extra.into())?
            .sub(&pads.into())
    }
}

/// The kernel's spatial sizes: an attribute, or the weight's last dimensions.
fn kernel(call: &Call<'_>, weight: Option<&[Expr]>, rank: usize) -> Option<Vec<Expr>> {
    let kernel: Vec<Expr> = match (call.list("kernel_shape")?, weight) {
        (Some(sizes), _) => sizes.iter().map(|&s| s.into()).collect(),
        (None, Some(weight)) => weight.get(2..)?.to_vec(),
        (None, None) => return None,
    };
    (kernel.len() == rank).then_some(kernel)
}

fn spatial<'d>(call: &Call<'_>, dims: &'d [Expr]) -> Option<(&'d Expr, &'d Expr, &'d [Expr])> {
    match dims {
        [batch, channels, rest @ ..] => Some((batch, channels, rest)),
        _ => {
            call.conflict(format!("{} has no batch and channels", text(dims)));
            None
        }
    }
}

/// `Conv` and its kin; `weight` is the input that holds the kernel.
pub(super) fn conv(call: &Call<'_>, weight: usize) -> Option<Outs> {
    let (batch, channels, sizes) = spatial(call, call.dims(0)?)?;
    let weight = call.dims(weight)?;
    let kernel = kernel(call, Some(weight), sizes.len())?;
    let group = Expr::from(call.int("group")?);
    let taken = weight.get(1)?.mul(&group)?;
    if taken.equals(channels) == Some(false) {
        call.conflict(format!("{channels} channels meet a kernel for {taken}"));
    } else {
        call.demands.equal(&taken, channels);
    }
    let mut dims: Dims = SmallVec::from_iter([batch.clone(), weight.first()?.clone()]);
    for ((size, k), window) in sizes.iter().zip(&kernel).zip(windows(call, sizes.len())?) {
        dims.push(call.size(window.size(size, k, false)));
        window.fits(call, size, k);
    }
    Some(one(dims))
}

pub(super) fn conv_transpose(call: &Call<'_>) -> Option<Outs> {
    let (batch, _, sizes) = spatial(call, call.dims(0)?)?;
    let weight = call.dims(1)?;
    let kernel = kernel(call, Some(weight), sizes.len())?;
    let group = Expr::from(call.int("group")?);
    let extra = call.list("output_padding")?.unwrap_or(&[]);
    let fixed = call.list("output_shape")?.unwrap_or(&[]);
    let mut dims: Dims =
        SmallVec::from_iter([batch.clone(), call.size(weight.get(1)?.mul(&group))]);
    for (at, window) in windows(call, sizes.len())?.iter().enumerate() {
        let extra = extra.get(at).copied().unwrap_or(0);
        let size = match fixed
            .len()
            .checked_sub(sizes.len())
            .and_then(|lead| fixed.get(lead + at))
        {
            Some(&size) => Some(size.into()),
            None => window.transposed(&sizes[at], kernel.get(at)?, extra),
        };
        dims.push(call.size(size));
    }
    Some(one(dims))
}

pub(super) fn pool(call: &Call<'_>) -> Option<Outs> {
    let (batch, channels, sizes) = spatial(call, call.dims(0)?)?;
    let kernel = kernel(call, None, sizes.len())?;
    let ceil = call.int("ceil_mode")? != 0;
    let mut dims: Dims = SmallVec::from_iter([batch.clone(), channels.clone()]);
    for ((size, k), window) in sizes.iter().zip(&kernel).zip(windows(call, sizes.len())?) {
        dims.push(call.size(window.size(size, k, ceil)));
        window.fits(call, size, k);
    }
    let out = Fact::of_dims(dims);
    Some(SmallVec::from_iter([out.clone(), out]))
}

pub(super) fn global_pool(call: &Call<'_>) -> Option<Outs> {
    let (batch, channels, sizes) = spatial(call, call.dims(0)?)?;
    let mut dims: Dims = SmallVec::from_iter([batch.clone(), channels.clone()]);
    dims.extend(sizes.iter().map(|_| Expr::from(1)));
    Some(one(dims))
}

/// `Resize` and `Upsample`: sizes, or scales rounded down.
pub(super) fn resize(call: &Call<'_>, scales: usize, sizes: Option<usize>) -> Option<Outs> {
    let dims = call.dims(0)?;
    let axes: SmallVec<[usize; 4]> = match call.list("axes")? {
        None => (0..dims.len()).collect(),
        Some(axes) => axes
            .iter()
            .map(|&a| call.axis(a, dims.len()))
            .collect::<Option<_>>()?,
    };
    let mut out: Dims = dims.into();
    let given =
        sizes.filter(|&k| call.has(k) && known_count(call.dims(k).unwrap_or(&[])) != Some(0));
    let stretch = matches!(
        call.node.attrs().str("keep_aspect_ratio_policy"),
        None | Some("stretch")
    );
    let factors = match call.node.attrs().get("scales") {
        Some(crate::Attr::Floats(f)) => Some(f.iter().map(|&f| f64::from(f)).collect()),
        _ => call
            .tensor(scales)
            .filter(|t| t.len() <= 64)
            .and_then(crate::Tensor::to_f64s),
    };
    for (at, &axis) in axes.iter().enumerate() {
        let size = match given {
            Some(k) if stretch => call.values(k).and_then(|v| v.get(at).cloned()),
            Some(_) => None,
            None => factors
                .as_ref()
                .and_then(|f| scaled(&dims[axis], *f.get(at)?)),
        };
        out[axis] = call.size(size.filter(Expr::is_nonnegative));
    }
    Some(one(out))
}

fn scaled(size: &Expr, factor: f64) -> Option<Expr> {
    if factor.fract() == 0.0 && (0.0..1e9).contains(&factor) {
        return size.mul(&Expr::from(factor as i64));
    }
    let product = size.as_i64()? as f64 * factor;
    (0.0..1e15)
        .contains(&product)
        .then(|| Expr::from(product.floor() as i64))
}

/// `GatherND`
pub(super) fn gather_nd(call: &Call<'_>) -> Option<Outs> {
    let batch = usize::try_from(call.int_or("batch_dims", 0)?).ok()?;
    let (data, indices) = (call.dims(0)?, call.dims(1)?);
    let (depth, lead) = indices.split_last()?;
    let depth = usize::try_from(depth.as_i64()?).ok()?;
    let Some(rest) = data.get(batch.checked_add(depth)?..) else {
        call.conflict(format!("indices of {depth} into {}", text(data)));
        return None;
    };
    Some(one(lead.iter().chain(rest).cloned().collect()))
}
