//! Which elements of a row a mask hides.

/// Where padding is: at the end of the last axis, in amounts that change from sample to sample.
#[derive(Clone, Copy)]
pub(super) struct Padding {
    pub(super) last: usize,
    pub(super) per_sample: usize,
    pub(super) first: bool,
}

impl Padding {
    pub(super) fn of(shape: &[usize], count: usize, first: bool) -> Padding {
        let samples = if shape.len() > 1 { shape[0] } else { 1 };
        Padding {
            last: shape.last().copied().unwrap_or(1).max(1),
            per_sample: count.checked_div(samples).unwrap_or(0).max(1),
            first,
        }
    }

    /// Places of the row of this element that are no padding; at least one.
    pub(super) fn tokens(self, element: usize) -> usize {
        self.last - self.hidden(element / self.per_sample)
    }

    pub(super) fn hidden(self, sample: usize) -> usize {
        match sample {
            0 if self.first => self.last / 2,
            0 => 0,
            sample => self.last * ((sample - 1) % 3 + 1) / 4,
        }
    }

    pub(super) fn keeps(self, element: usize) -> bool {
        element % self.last < self.tokens(element)
    }
}
