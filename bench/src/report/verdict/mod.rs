//! Compares two reports by a rule that takes account of the noise.
//!
//! For each measure in both reports: the *change*, which is the median of the ratios of every new sample to every old
//! one (Hodges and Lehmann, 1963), and the interval that contains the true change with the requested confidence: the
//! exact one that belongs to the rank sum test of Mann and Whitney (1947). See [`rank_sum`] for both. If the interval
//! contains 1, the noise allows no verdict. Nothing is assumed about the distribution of the noise, and nothing is
//! random: the same files always give the same verdict.
//!
//! The comparison is between two runs, and the noise it knows is that between the rounds *of one* run. A machine that
//! was throttled or busy during the whole of one run looks like a real difference. [`Comparison::surroundings`] lists
//! the known differences in the conditions.

pub mod rank_sum;

use std::collections::HashMap;
use std::fmt::Write;

use comfy_table::{Cell, CellAlignment};
use rank_sum::Confidence;

use super::text::{figure, plain};
use super::{Better, Measure, Report, Spread, table};

/// Lines of the context that always differ between runs and mean nothing.
const ALWAYS_DIFFERENT: [&str; 3] = ["time", "load before (1, 5, 15 min)", "command line"];

/// The most pairs of samples that are compared: some seconds of work.
pub const MOST_PAIRS: usize = 100_000_000;

/// The comparison of two reports.
#[derive(Debug)]
pub struct Comparison {
    /// The confidence of the intervals.
    pub confidence: Confidence,
    /// Measures that both have, in the order of the new report.
    pub compared: Vec<Compared>,
    /// Measures that only one of them has, as sentences.
    pub alone: Vec<String>,
    /// Lines of the context that differ: name, old, new.
    pub surroundings: Vec<(String, String, String)>,
}

/// A measure in both reports.
#[derive(Debug)]
pub struct Compared {
    /// The subject.
    pub subject: String,
    /// Name and unit.
    pub quantity: String,
    /// The old samples.
    pub old: Spread,
    /// The new samples.
    pub new: Spread,
    /// The change; `None` if there are too few samples for any interval.
    pub change: Option<Change>,
    /// Its meaning.
    pub verdict: Verdict,
}

/// An estimate and its interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Change {
    /// Whether it is the ratio new / old or, if a sample is not above 0, the difference new - old.
    pub is_ratio: bool,
    /// The most likely value.
    pub estimate: f64,
    /// The lower end of the interval.
    pub low: f64,
    /// The upper end of the interval.
    pub high: f64,
}

/// What a change means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The new report's figure is better: the whole interval is.
    Faster,
    /// It is worse.
    Slower,
    /// The interval contains "no change".
    NoDifference,
    /// With so few rounds, even the least likely outcome is not unlikely enough.
    NotEnoughRounds,
}

impl Verdict {
    fn words(self) -> &'static str {
        match self {
            Verdict::Faster => "faster",
            Verdict::Slower => "slower",
            Verdict::NoDifference => "no difference beyond the noise",
            Verdict::NotEnoughRounds => "not enough rounds",
        }
    }
}

/// Two reports have too many samples to compare every pair of an old and a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "comparing them means {0} pairs of an old and a new sample, and {MOST_PAIRS} are the most; 100 rounds are enough \
     for any verdict"
)]
pub struct TooManyPairs(usize);

/// Compares `new` with `old`.
///
/// # Errors
/// There are more than [`MOST_PAIRS`] pairs of samples.
pub fn compare(old: &Report, new: &Report, confidence: Confidence) -> Result<Comparison, TooManyPairs> {
    let key = |measure: &Measure| (measure.subject.clone(), measure.quantity.clone(), measure.unit.clone());
    let mut olds: HashMap<_, &Measure> = old.measures.iter().map(|measure| (key(measure), measure)).collect();
    let pairs = |measure: &Measure| measure.samples.len() * olds.get(&key(measure)).map_or(0, |old| old.samples.len());
    let pairs = new.measures.iter().map(pairs).sum();
    if pairs > MOST_PAIRS {
        return Err(TooManyPairs(pairs));
    }
    let mut outside = Outside::new(confidence);
    let mut compared = Vec::new();
    let mut alone = Vec::new();
    for measure in &new.measures {
        match olds.remove(&key(measure)) {
            Some(old) => compared.push(judge(old, measure, &mut outside)),
            None => alone.push(format!("{}, {}: only in the new report", measure.subject, measure.quantity)),
        }
    }
    for measure in old.measures.iter().filter(|measure| olds.contains_key(&key(measure))) {
        alone.push(format!("{}, {}: only in the old report", measure.subject, measure.quantity));
    }
    Ok(Comparison { confidence, compared, alone, surroundings: surroundings(old, new) })
}

/// [`rank_sum::outside`] by the numbers of samples, which most measures have in common: counting takes long.
struct Outside {
    confidence: Confidence,
    known: HashMap<(usize, usize), Option<usize>>,
}

impl Outside {
    fn new(confidence: Confidence) -> Outside {
        Outside { confidence, known: HashMap::new() }
    }

    fn of(&mut self, m: usize, n: usize) -> Option<usize> {
        *self.known.entry((m, n)).or_insert_with(|| rank_sum::outside(m, n, self.confidence))
    }
}

fn judge(old: &Measure, new: &Measure, outside: &mut Outside) -> Compared {
    let change = change(&old.samples, &new.samples, outside);
    let verdict = match change {
        None => Verdict::NotEnoughRounds,
        Some(Change { is_ratio, low, high, .. }) => {
            let same = if is_ratio { 1.0 } else { 0.0 };
            match new.better {
                _ if (low..=high).contains(&same) => Verdict::NoDifference,
                Better::Higher if low > same => Verdict::Faster,
                Better::Lower if high < same => Verdict::Faster,
                _ => Verdict::Slower,
            }
        }
    };
    let quantity = super::Quantity { name: &new.quantity, unit: &new.unit, better: new.better, measures: vec![] };
    Compared {
        subject: new.subject.clone(),
        quantity: quantity.heading(),
        old: old.spread(),
        new: new.spread(),
        change,
        verdict,
    }
}

/// `None` if there are too few samples for the confidence.
fn change(old: &[f64], new: &[f64], outside: &mut Outside) -> Option<Change> {
    let outside = outside.of(old.len(), new.len())?;
    let is_ratio = old.iter().chain(new).all(|sample| *sample > 0.0);
    let step: fn(f64, f64) -> f64 = if is_ratio { |new, old| new / old } else { |new, old| new - old };
    let mut steps: Vec<f64> = new.iter().flat_map(|new| old.iter().map(move |old| step(*new, *old))).collect();
    steps.sort_unstable_by(f64::total_cmp);
    let [low, high] = [steps[outside], steps[steps.len() - 1 - outside]];
    Some(Change { is_ratio, estimate: Spread::of(&steps).median, low, high })
}

fn surroundings(old: &Report, new: &Report) -> Vec<(String, String, String)> {
    let told = |report: &Report, name: &str| {
        let line = report.context.iter().find(|(found, _)| found == name);
        line.map_or("not told".into(), |(_, text)| text.clone())
    };
    let mut names: Vec<&String> = new.context.iter().chain(&old.context).map(|(name, _)| name).collect();
    names.retain(|name| !ALWAYS_DIFFERENT.contains(&name.as_str()));
    let mut differing: Vec<(String, String, String)> = Vec::new();
    for name in names {
        let (before, after) = (told(old, name), told(new, name));
        if before != after && differing.iter().all(|(found, ..)| found != name) {
            differing.push((name.clone(), before, after));
        }
    }
    differing
}

impl Comparison {
    /// The number of measures with this verdict.
    pub fn count(&self, verdict: Verdict) -> usize {
        self.compared.iter().filter(|compared| compared.verdict == verdict).count()
    }

    /// For the terminal.
    pub fn render(&self) -> String {
        let mut text = String::new();
        let percent = self.confidence.percent();
        let mut figures = table::table();
        let names = ["", "", "old", "new", "change", &format!("{percent} % interval"), ""];
        figures.set_header(names.map(|name| Cell::new(name).set_alignment(CellAlignment::Right)));
        for compared in &self.compared {
            let Compared { subject, quantity, old, new, change, verdict } = compared;
            let right = |text: String| Cell::new(text).set_alignment(CellAlignment::Right);
            let interval = |c: &Change| format!("{} to {}", c.show(c.low), c.show(c.high));
            figures.add_row([
                Cell::new(plain(quantity)),
                Cell::new(plain(subject)),
                right(figure(old.median)),
                right(figure(new.median)),
                right(change.map_or("–".into(), |c| c.show(c.estimate))),
                right(change.as_ref().map_or("–".into(), interval)),
                Cell::new(verdict.words()),
            ]);
        }
        for line in figures.lines() {
            let _ = writeln!(text, "{}", line.trim_end());
        }
        text.push('\n');
        for sentence in self.sentences() {
            let _ = writeln!(text, "- {sentence}");
        }
        text
    }

    /// What a reader must know to trust the table.
    fn sentences(&self) -> Vec<String> {
        let percent = self.confidence.percent();
        let judged = self.compared.len() - self.count(Verdict::NotEnoughRounds);
        let by_chance = judged as f64 * self.confidence.risk();
        let mut sentences = vec![format!(
            "{} faster, {} slower of {judged} judged. Were nothing changed, about {by_chance:.1} of them would still \
             differ by chance at {percent} % confidence.",
            self.count(Verdict::Faster),
            self.count(Verdict::Slower),
        )];
        if self.count(Verdict::NotEnoughRounds) > 0 {
            let least = rank_sum::least_rounds(self.confidence);
            sentences.push(format!("A verdict at {percent} % needs {least} rounds in each report."));
        }
        for (name, old, new) in &self.surroundings {
            let [name, old, new] = [name, old, new].map(|text| plain(text));
            sentences.push(format!("The conditions differ: {name} was \"{old}\" and is \"{new}\"."));
        }
        sentences.extend(self.alone.iter().map(|sentence| format!("{}.", plain(sentence))));
        sentences
    }
}

impl Change {
    /// "× 1.20" or "+3.5".
    fn show(&self, value: f64) -> String {
        match self.is_ratio {
            true => format!("× {value:.3}"),
            false => format!("{}{}", if value < 0.0 { "" } else { "+" }, figure(value)),
        }
    }
}

#[cfg(test)]
mod tests;
