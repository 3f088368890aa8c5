//! The rate at which packets arrive.

/// Counts packets and bytes from the end of the first batch to the end of the last: packets of the first batch had been
/// arriving for an unknown time.
#[derive(Debug, Clone, Copy, Default)]
pub struct Span {
    first: Option<Mark>,
    last: Option<Mark>,
}

#[derive(Debug, Clone, Copy)]
struct Mark {
    at: u64,
    packets: u64,
    bytes: u64,
}

/// What arrived in a [`Span`].
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Rate {
    /// From the first batch to the last.
    pub seconds: f64,
    /// Packets a second; 0 if there was only one batch.
    pub packets: f64,
    /// Bytes a second, likewise.
    pub bytes: f64,
}

impl Span {
    /// Ends a batch received at `time`, in nanoseconds; `packets` and `bytes` are the totals after it. A batch that
    /// brought none does not extend the span.
    #[inline]
    pub fn end_of_batch(&mut self, time: u64, packets: u64, bytes: u64) {
        if packets > self.last.map_or(0, |last| last.packets) {
            let mark = Mark { at: time, packets, bytes };
            self.first.get_or_insert(mark);
            self.last = Some(mark);
        }
    }

    /// The rate in the span.
    pub fn rate(&self) -> Rate {
        match (self.first, self.last) {
            (Some(first), Some(last)) if last.at > first.at => {
                let seconds = (last.at - first.at) as f64 / 1e9;
                let since = |now: u64, then: u64| (now - then) as f64 / seconds;
                Rate { seconds, packets: since(last.packets, first.packets), bytes: since(last.bytes, first.bytes) }
            }
            _ => Rate::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_batch_is_left_out() {
        let mut span = Span::default();
        span.end_of_batch(1, 0, 0);
        for batch in 1..=11 {
            span.end_of_batch(5_000_000_000 + batch * 100_000_000, batch * 10, batch * 640);
        }
        let rate = Rate { seconds: 1.0, packets: 100.0, bytes: 6400.0 };
        assert_eq!(span.rate(), rate);
        // Packets that are not counted do not stretch the span.
        span.end_of_batch(9_000_000_000, 110, 7040);
        assert_eq!(span.rate(), rate);
    }

    #[test]
    fn one_batch_has_no_rate() {
        let mut span = Span::default();
        assert_eq!(span.rate(), Rate::default());
        span.end_of_batch(7, 64, 4096);
        assert_eq!(span.rate(), Rate::default());
    }
}
