//! How nodes with bodies hand values to these and take them back.

use kiln_graph::{Graph, NodeId, ValueId};

/// The bodies of a node, in the order of its attributes.
pub(in crate::precision) fn bodies(g: &Graph, id: NodeId) -> impl Iterator<Item = &Graph> {
    g.node(id).attrs().iter().flat_map(|(_, a)| a.graphs())
}

/// How the operands of a node stand to its bodies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::precision) enum Control {
    If,
    /// With so many values that are carried.
    Loop(usize),
    /// With so many values that are carried, in front of those that are scanned.
    Scan(usize),
}

impl Control {
    /// `None` for nodes without bodies, and forms that are not followed.
    pub fn of(g: &Graph, id: NodeId) -> Option<Control> {
        let node = g.node(id);
        let (op, inputs) = (node.op(), node.inputs().len());
        match node.has_subgraphs() {
            false => None,
            true if op.is("If") => Some(Control::If),
            true if op.is("Loop") => Some(Control::Loop(inputs.saturating_sub(2))),
            // Before operator set 9 there was a batch dimension and an input in front.
            true if op.is("Scan") && g.opset() >= 9 => {
                let scanned = usize::try_from(node.attrs().int("num_scan_inputs")?).ok()?;
                Some(Control::Scan(inputs.checked_sub(scanned)?))
            }
            true => None,
        }
    }

    /// The node's output behind an output of its bodies.
    pub fn output(self, of_body: usize) -> Option<usize> {
        match self {
            Control::If | Control::Scan(_) => Some(of_body),
            Control::Loop(_) => of_body.checked_sub(1),
        }
    }

    /// The node's operand in front of an input of its bodies.
    pub fn operand(self, of_body: usize) -> Option<usize> {
        match self {
            Control::If => None,
            Control::Loop(_) => (of_body >= 2).then_some(of_body),
            Control::Scan(_) => Some(of_body),
        }
    }

    /// The node's output that starts as this operand.
    pub fn carried(self, operand: usize) -> Option<usize> {
        match self {
            Control::If => None,
            Control::Loop(count) => operand.checked_sub(2).filter(|k| *k < count),
            Control::Scan(count) => Some(operand).filter(|k| *k < count),
        }
    }
}

impl Control {
    /// What a body carries from one iteration to the next: the node's output, the body's input and its output.
    pub fn pairs(self, body: &Graph) -> impl Iterator<Item = (usize, ValueId, ValueId)> {
        let outputs = body.outputs().iter().map(|o| o.value).enumerate();
        outputs.filter_map(move |(of_body, to)| {
            let output = self.output(of_body)?;
            let input = (0..body.inputs().len()).find(|&k| {
                let operand = self.operand(k);
                operand.and_then(|k| self.carried(k)) == Some(output)
            });
            Some((output, *body.inputs().get(input?)?, to))
        })
    }
}
