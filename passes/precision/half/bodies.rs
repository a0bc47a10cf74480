//! Bodies of If, Loop and Scan in half precision: what they share with the graph around them, and in which type.

use kiln_graph::caches::{self, Update};
use kiln_graph::graph::Slot;
use kiln_graph::{DType, Def, Graph, NodeId, Type, Use, ValueId};
use rustc_hash::FxHashMap;

use super::control::Control;
use super::convert::State;
use super::decisions;
use super::flow::Flow;
use super::touch::{is_f32, touches};
use crate::core::pass::{Context, Options, PassFailure, Remark};
use crate::precision::calibrated::stats::Stats;

/// Captured constants of at most so many bytes become constants of the bodies that read them.
const LOCAL: usize = 1 << 16;

/// Gives bodies constants of their own where they read small ones of a graph around them: each reader then has them in its
/// type, and rules see their numbers. Bodies of nodes that the user keeps stay as they are.
pub(in crate::precision) fn localize(g: &mut Graph, options: &Options<'_>) {
    let nodes = g.nodes().filter(|(_, n)| n.has_subgraphs());
    let nodes: Vec<NodeId> = nodes.map(|(id, _)| id).collect();
    for id in nodes {
        if options.keeps(g, id).is_some() {
            continue;
        }
        let small = |(k, v): (usize, &ValueId)| {
            let tensor = g.constant(*v)?;
            let local = tensor.dtype() == DType::F32 && tensor.byte_len() <= LOCAL;
            local.then(|| (k as u32, *v, g.value(*v).name().to_string(), tensor.clone()))
        };
        let captures = g.node(id).captures().iter().enumerate();
        let constants: Vec<_> = captures.filter_map(small).collect();
        for body in g.attrs_mut(id).values_mut().flat_map(|a| a.graphs_mut()) {
            for (k, _, name, tensor) in &constants {
                for v in captured(body, *k) {
                    let local = body.add_constant(name, tensor.clone());
                    body.replace_uses(v, local);
                }
            }
            localize(body, options);
        }
        g.drop_unused_captures(id);
        for (_, v, ..) in constants {
            g.remove_unused_value(v);
        }
    }
}

/// The values of a body that are the capture at this position and read.
fn captured(body: &Graph, k: u32) -> Vec<ValueId> {
    let here = |def: &Def| matches!(def, Def::Capture(at) if *at == k);
    let values = body
        .values()
        .filter(|(_, v)| here(v.def()) && !v.is_unused());
    values.map(|(id, _)| id).collect()
}

/// A value of the graph around that a body reads.
#[derive(Clone, Copy, Debug)]
pub(in crate::precision) struct Captured {
    /// It arrives as half.
    pub half: bool,
    /// The format can hold it.
    pub fits: bool,
}

/// What a graph has in common with the one around it.
#[derive(Debug, Default)]
pub(in crate::precision) struct Edge {
    /// Which inputs are half.
    pub inputs: Vec<bool>,
    /// Which outputs must be half.
    pub outputs: Vec<bool>,
    pub captures: Vec<Captured>,
    /// FP32 captures that also exist in half precision.
    pub twins: Vec<(ValueId, ValueId)>,
    /// Inputs and outputs of a value that is carried.
    pub carried: Vec<(ValueId, ValueId)>,
    /// It is that of a body.
    pub inside: bool,
}

impl Edge {
    /// Of the outermost graph.
    pub fn whole(g: &Graph, half: bool) -> Edge {
        Edge {
            inputs: vec![half; g.inputs().len()],
            outputs: vec![half; g.outputs().len()],
            ..Edge::default()
        }
    }

    /// Caches that are written into are half outside, too.
    pub fn bind(&mut self, g: &Graph) {
        for cache in caches::caches(g) {
            if cache.update != Update::Written {
                continue;
            }
            if let Some(k) = g.inputs().iter().position(|v| *v == cache.input) {
                self.inputs[k] = true;
            }
            if let Some(half) = cache.output.and_then(|k| self.outputs.get_mut(k)) {
                *half = true;
            }
        }
    }

    pub fn captured(&self, g: &Graph, v: ValueId) -> Option<Captured> {
        match g.value(v).def() {
            Def::Capture(k) => self.captures.get(*k as usize).copied(),
            _ => None,
        }
    }
}

/// What becomes half of a node with bodies.
#[derive(Debug, Default)]
pub(in crate::precision) struct Half {
    pub operands: Vec<bool>,
    pub results: Vec<bool>,
    /// The bodies keep their types.
    pub whole: bool,
}

/// The types of what nodes with bodies read and give.
#[derive(Debug, Default)]
pub(in crate::precision) struct Slots {
    nodes: FxHashMap<NodeId, Half>,
    none: Half,
}

impl Slots {
    pub fn of(
        g: &Graph,
        order: &[NodeId],
        flow: &Flow,
        why: &[Option<String>],
        options: &Options<'_>,
    ) -> Slots {
        let mut slots = Slots::default();
        for &id in order.iter().filter(|id| g.node(**id).has_subgraphs()) {
            let node = g.node(id);
            let control = Control::of(g, id).filter(|_| options.keeps(g, id).is_none());
            let free = why[id.index()].is_none();
            let half = match control {
                None => Half {
                    whole: true,
                    ..Half::default()
                },
                Some(control) => {
                    let result = |k: usize| {
                        let float = node.output(k).is_some_and(|v| is_f32(g, v));
                        free && float && decisions::slot(g, flow, id, control, k)
                    };
                    let results: Vec<bool> = (0..node.outputs().len()).map(result).collect();
                    let operand = |k: usize| match (control.carried(k), node.input(k)) {
                        (Some(result), _) => results.get(result) == Some(&true),
                        (None, Some(v)) => free && is_f32(g, v) && !flow.origin(v).needs_f32(),
                        (None, None) => false,
                    };
                    let operands = (0..node.inputs().len()).map(operand).collect();
                    Half {
                        operands,
                        results,
                        whole: false,
                    }
                }
            };
            slots.nodes.insert(id, half);
        }
        slots
    }

    pub fn node(&self, id: NodeId) -> &Half {
        self.nodes.get(&id).unwrap_or(&self.none)
    }
}

impl State<'_> {
    /// Converts a node with bodies. Gives the number of nodes that became half, those of its bodies included.
    pub fn control(
        &mut self,
        g: &mut Graph,
        id: NodeId,
        (half, why): (&Half, Option<&str>),
        flow: &Flow,
        cx: &mut Context<'_>,
    ) -> Result<usize, PassFailure> {
        let narrows = half.results.contains(&true) || half.operands.contains(&true);
        let floats = touches(g, id, |v| is_f32(g, v) || self.is_half(v));
        match why {
            Some(why) if floats => cx.kept(g, id, why.to_string()),
            None if narrows => {
                let node = g.label(id);
                cx.remarks.push(Remark::Narrowed { node });
            }
            _ => {}
        }
        for k in 0..g.node(id).inputs().len() {
            let want = half.operands.get(k) == Some(&true);
            if let Some(v) = g.node(id).input(k)
                && let Some(twin) = self.wanted(g, v, want, cx)
            {
                g.set_input(id, k, Some(twin));
            }
        }
        let inside = match half.whole {
            true => {
                self.keep_captures(g, id, cx);
                0
            }
            false => self.bodies(g, id, half, flow, cx)?,
        };
        Ok(inside + usize::from(narrows))
    }

    /// Hands what was FP32 to bodies as FP32.
    fn keep_captures(&mut self, g: &mut Graph, id: NodeId, cx: &mut Context<'_>) {
        for k in 0..g.node(id).captures().len() {
            let v = g.node(id).captures()[k];
            if let Some(twin) = self.wanted(g, v, false, cx) {
                let slot = Slot::Capture(k as u32);
                g.set_use(Use { node: id, slot }, twin);
            }
        }
    }

    /// Converts the bodies of a node.
    fn bodies(
        &mut self,
        g: &mut Graph,
        id: NodeId,
        half: &Half,
        flow: &Flow,
        cx: &mut Context<'_>,
    ) -> Result<usize, PassFailure> {
        let Some(control) = Control::of(g, id) else {
            return Ok(0);
        };
        let mut captures = Vec::new();
        let mut both = Vec::new();
        for k in 0..g.node(id).captures().len() {
            let v = g.node(id).captures()[k];
            let is_half = self.is_half(v);
            let constant = g.constant(v).is_some() && is_f32(g, v);
            let fits = match constant {
                true => self.ranges.suits(g, v),
                false => is_half || self.ranges.fits(g, v),
            };
            captures.push(Captured {
                half: is_half,
                fits,
            });
            if (constant && fits) || (is_f32(g, v) && self.twins.contains_key(&v)) {
                let twin = self.twin(g, v, true, cx);
                both.push((k as u32, g.push_capture(id, twin) as u32));
            }
        }
        let dtype = self.conversion.format.dtype();
        let suffix = self.conversion.format.suffix();
        let none = Stats::default();
        let mut converted = 0;
        let bodies = g.attrs_mut(id).values_mut().flat_map(|a| a.graphs_mut());
        for (body, flow) in bodies.zip(flow.bodies(id)) {
            let mut edge = Edge {
                captures: captures.clone(),
                inputs: (0..body.inputs().len())
                    .map(|k| control.operand(k).and_then(|k| half.operands.get(k)) == Some(&true))
                    .collect(),
                outputs: (0..body.outputs().len())
                    .map(|k| control.output(k).and_then(|k| half.results.get(k)) == Some(&true))
                    .collect(),
                twins: Vec::new(),
                inside: true,
                carried: (control.pairs(body).map(|(_, from, to)| (from, to))).collect(),
            };
            for &(wide, narrow) in &both {
                for v in captured(body, wide) {
                    let shape = body.value(v).ty().shape().map(|s| s.into());
                    let name = format!("{}_{suffix}", body.value(v).name());
                    let ty = Type::tensor(dtype, shape);
                    let twin = body.add_capture(&name, ty, narrow as usize);
                    edge.twins.push((v, twin));
                }
            }
            converted += self.conversion.graph(body, &edge, flow, &none, cx)?;
        }
        g.drop_unused_captures(id);
        Ok(converted)
    }
}
