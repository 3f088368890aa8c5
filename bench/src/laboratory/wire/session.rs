//! A whole measurement: for each mix of sizes the tool's own ceiling, then what was requested.

use std::num::NonZeroU64;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::plan::LATENCY_LOADS;
use super::prober::{Flood, Prober};
use super::{Bench, Findings, Kind, Load, Outcome, Plan, Traffic};
use crate::laboratory::search::{self, End, Goal, GoalResult, Limits, Trial};
use crate::report::Better;
use crate::traffic::packet::Mix;

/// From this fraction of the tool's own ceiling on, a result may be the tool's as much as the device's.
const NEAR_CEILING: f64 = 0.9;
/// Goal Loss Ratios of the non-drop and the partial drop rate.
const GOAL_LOSSES: [f64; 2] = [0.0, 0.005];
/// How the ceiling is searched: with trials of this length, three per load, to this width.
const CEILING_TRIAL: Duration = Duration::from_millis(300);
const CEILING_WIDTH: f64 = 0.05;
/// How often generator and bare loop are measured in turn, and for how long each: slow and fast moments affect both.
const TOOL_PAIRS: usize = 15;
const TOOL_TURN: Duration = Duration::from_millis(100);

/// A measurement under way.
pub struct Session<'a> {
    /// What to do.
    pub plan: &'a Plan,
    /// With what packets.
    pub traffic: &'a Traffic,
    /// The bench over the device.
    pub device: Bench,
    /// The bench without a device, for measuring the tool.
    pub bare: Option<Bench>,
    /// Ends the measurement when set.
    pub stop: &'a AtomicBool,
    /// Called with what is measured next, [`Plan::steps`] times.
    pub progress: &'a mut dyn FnMut(&str),
}

impl Session<'_> {
    /// Measures everything.
    ///
    /// # Errors
    /// The kernel's refusal; `Interrupted` when the stop flag is set.
    pub fn run(mut self) -> anyhow::Result<Findings> {
        let mut findings = Findings::default();
        let plan = self.plan;
        let mut ceilings = vec![None; plan.mixes.len()];
        let mut trials = vec![vec![]; plan.mixes.len()];
        for round in 0..plan.rounds {
            for ((mix, ceiling), trials) in plan.mixes.iter().zip(&mut ceilings).zip(&mut trials) {
                let at = format!("round {} of {}, {mix}", round + 1, plan.rounds);
                if round == 0 {
                    *ceiling = self.ceiling(mix, &at, &mut findings)?;
                }
                self.device.change(self.traffic.templates(mix)?)?;
                match plan.fixed {
                    Some(rate) => self.fixed(mix, rate, *ceiling, &at, &mut findings)?,
                    None => trials.extend(self.searches(mix, *ceiling, &at, &mut findings)?),
                }
            }
        }
        plan.mixes.iter().zip(&trials).for_each(|(mix, trials)| losses(mix, trials, &mut findings));
        self.notes(&mut findings);
        Ok(findings)
    }

    /// The highest rate that the tool itself sends and receives without loss, in packets a second in each direction.
    fn ceiling(&mut self, mix: &Mix, at: &str, findings: &mut Findings) -> anyhow::Result<Option<f64>> {
        let Some(bare) = &mut self.bare else {
            findings.note("The tool's own ceiling was not measured, and may limit the results.".into());
            return Ok(None);
        };
        (self.progress)(&format!("{at}: the tool's own ceiling"));
        bare.change(self.traffic.templates(mix)?)?;
        let mut prober = Prober::new(bare, self.stop);
        let flooded = prober.flood(CEILING_TRIAL)?.offered;
        let goal = Goal {
            loss_ratio: 0.0,
            final_trial: CEILING_TRIAL,
            duration_sum: 3 * CEILING_TRIAL,
            exceed_ratio: 0.5,
            width: CEILING_WIDTH,
        };
        let limits = Limits { max: flooded.max(self.plan.limits.min), ..self.plan.limits };
        let results = search::mlrsearch(&mut prober, limits, &[goal], CEILING_TRIAL)?;
        let found = results.first().and_then(|result| result.lower);
        let held = found.map(|found| prober.highest_held(found, self.plan.duration_sum)).transpose()?.flatten();
        match held {
            Some(ceiling) => findings.whole_rate(mix, "Tool's own ceiling (bare veth, no loss)", ceiling as f64),
            None => findings.note(format!("{mix}: the tool loses packets even over a bare veth pair.")),
        }
        Ok(held.map(|ceiling| ceiling as f64))
    }

    fn fixed(
        &mut self,
        mix: &Mix,
        rate: NonZeroU64,
        ceiling: Option<f64>,
        at: &str,
        findings: &mut Findings,
    ) -> anyhow::Result<()> {
        (self.progress)(&format!("{at}: {rate} packets/s"));
        let outcomes = self.device.run(Load { rate: Some(rate), duration: self.plan.trial }, self.stop)?;
        for (direction, outcome) in self.device.directions().iter().zip(&outcomes) {
            let subject = subject(mix, &direction.name, outcomes.len());
            findings.outcome(&subject, outcome);
            if !outcome.is_offered() {
                findings.note(format!("{subject}: the generator could not offer {rate} packets/s."));
            } else if outcome.sent.late > 0 {
                findings.note(format!(
                    "{subject}: the generator was held up; {} of {} packets left in bursts, at most {} at once.",
                    outcome.sent.late, outcome.sent.packets, outcome.sent.most_behind
                ));
            }
        }
        near_ceiling(mix, "the rate", rate.get() as f64, ceiling, findings);
        Ok(())
    }

    /// The generator compared with a loop that only transmits, on the same interface; and the losses below the tool's
    /// own ceiling.
    fn tool(&mut self, mix: &Mix, ceiling: Option<f64>, findings: &mut Findings) -> anyhow::Result<()> {
        if let (Some(bare), Some(ceiling)) = (&mut self.bare, ceiling) {
            let rate = NonZeroU64::new((ceiling * NEAR_CEILING) as u64);
            let outcomes = bare.run(Load { rate, duration: self.plan.duration_sum }, self.stop)?;
            let sum = |of: fn(&Outcome) -> u64| outcomes.iter().map(of).sum::<u64>() as f64;
            let sent = sum(|o| o.sent.packets).max(1.0);
            for (what, lost) in [("without a device", sum(Outcome::lost)), ("by the sink", sum(|o| o.sink_drops))] {
                let quantity = format!("Lost {what} at 90 % of the tool's ceiling");
                findings.push(mix.name(), &quantity, "%", Better::Lower, lost / sent * 100.0);
            }
        }
        let bench = self.bare.as_mut().unwrap_or(&mut self.device);
        let mut pairs = bench.generator_and_bare_loop(TOOL_PAIRS, TOOL_TURN, self.stop)?;
        pairs.sort_by(|a, b| (a.0 / a.1).total_cmp(&(b.0 / b.1)));
        let (generator, bare) = pairs[pairs.len() / 2];
        findings.push(mix.name(), "Generator alone, unpaced", "kpps", Better::Higher, generator / 1e3);
        findings.push(mix.name(), "Bare transmit loop", "kpps", Better::Higher, bare / 1e3);
        findings.push(mix.name(), "Generator, of a bare transmit loop", "", Better::Higher, generator / bare);
        Ok(())
    }

    /// Gives the searches their trials.
    fn searches(
        &mut self,
        mix: &Mix,
        ceiling: Option<f64>,
        at: &str,
        findings: &mut Findings,
    ) -> anyhow::Result<Vec<Trial>> {
        let plan = self.plan;
        let wants = |kind| plan.kinds.contains(&kind);
        if wants(Kind::Tool) {
            (self.progress)(&format!("{at}: the generator beside a bare transmit loop"));
            self.tool(mix, ceiling, findings)?;
        }
        let mut prober = Prober::new(&mut self.device, self.stop);
        let mut tell = |what: &str| (self.progress)(&format!("{at}: {what}"));

        tell("maximum received rate");
        let Flood { offered, received, received_bits } = prober.flood(plan.trial)?;
        if wants(Kind::Maximum) {
            findings.rate(mix, "Maximum received rate", received, received_bits);
            findings.push(mix.name(), "Offered for it", "kpps", Better::Higher, offered as f64 / 1e3);
            near_ceiling(mix, "the maximum received rate", received, ceiling, findings);
        }
        let bounds = Found { mix, ceiling, max_was_given: plan.limits.max <= offered };
        let limits = Limits { max: plan.limits.max.min(offered).max(plan.limits.min), ..plan.limits };

        if wants(Kind::Throughput) {
            tell("throughput (RFC 2544)");
            let goal = Goal::rfc2544(plan.trial, plan.width);
            let results = search::mlrsearch(&mut prober, limits, &[goal], plan.trial)?;
            bounds.tell("Throughput (RFC 2544)", &results[0], findings);
        }
        if wants(Kind::Mlr) || wants(Kind::Latency) {
            tell("non-drop and partial drop rate (RFC 9971)");
            let goals = GOAL_LOSSES.map(|loss_ratio| Goal {
                loss_ratio,
                final_trial: plan.trial,
                duration_sum: plan.duration_sum,
                exceed_ratio: plan.exceed_ratio,
                width: plan.width,
            });
            let results = search::mlrsearch(&mut prober, limits, &goals, plan.trial)?;
            for (result, name) in results.iter().zip(["NDR (RFC 9971)", "PDR at 0.5 % loss (RFC 9971)"]) {
                bounds.tell(name, result, findings);
            }
            if let Some(pdr) = results[1].lower.filter(|_| wants(Kind::Latency)) {
                for part in LATENCY_LOADS {
                    tell(&format!("latency at {part} % of PDR"));
                    let (_, outcomes) = prober.trial(pdr * part / 100, plan.duration_sum)?;
                    for (direction, outcome) in prober.directions().zip(&outcomes) {
                        let subject = subject(mix, direction, outcomes.len());
                        findings.latency(&subject, &format!("Latency at {part} % of PDR"), outcome);
                    }
                }
            }
        }
        Ok(prober.into_trials())
    }

    /// How the procedure differs from the RFCs.
    fn notes(&self, findings: &mut Findings) {
        let plan = self.plan;
        if plan.fixed.is_none() {
            findings.note(format!(
                "Loads are packets a second in each direction. Trials last {:?} (RFC 2544: 60 s at least). Goals of RFC \
                 9971: duration sum {:?}, exceed ratio {}, width {} of the upper bound.",
                plan.trial, plan.duration_sum, plan.exceed_ratio, plan.width
            ));
        }
        if self.device.options().spin {
            findings.note("Sinks do not sleep, so the latencies include no wake-up.".into());
        } else {
            findings.note(
                "Sinks sleep while nothing comes, for want of cores, so the latencies include their wake-up.".into(),
            );
        }
    }
}

fn subject(mix: &Mix, direction: &str, directions: usize) -> String {
    if directions > 1 { format!("{mix}, {direction}") } else { mix.to_string() }
}

/// What is noted beside the result of every search of a mix.
struct Found<'a> {
    mix: &'a Mix,
    ceiling: Option<f64>,
    /// Whether Max Load came from the command line, rather than from the generator's rate.
    max_was_given: bool,
}

impl Found<'_> {
    fn tell(&self, name: &str, result: &GoalResult, findings: &mut Findings) {
        let mix = self.mix;
        if let Some(throughput) = result.conditional_throughput {
            findings.whole_rate(mix, name, throughput);
            near_ceiling(mix, name, throughput, self.ceiling, findings);
        }
        let kpps = |load: Option<u64>| load.map_or("none".into(), |load| format!("{:.1} kpps", load as f64 / 1e3));
        let bounds = format!("bounds {} and {}", kpps(result.lower), kpps(result.upper));
        findings.note(match result.end {
            End::Regular => format!("{mix}, {name}: {bounds}."),
            End::MaxLoad if self.max_was_given => format!(
                "{mix}, {name}: irregular: the highest requested load still meets the goal; the device may carry more \
                 ({bounds})."
            ),
            End::MaxLoad => format!(
                "{mix}, {name}: irregular, limited by the tool: the highest load that the generator offers still \
                 meets the goal; the device may carry more ({bounds})."
            ),
            End::Ceiling(load) => format!(
                "{mix}, {name}: irregular, limited by the tool: from {:.1} kpps on it was late or lost packets itself; \
                 the device may carry more ({bounds}).",
                load as f64 / 1e3
            ),
            End::MinLoad => format!("{mix}, {name}: irregular: even the lowest load loses too much ({bounds})."),
            End::Trials => format!("{mix}, {name}: irregular: the bounds did not settle ({bounds})."),
        });
    }
}

/// The curve of the device's losses, from trials that no goal disputes.
fn losses(mix: &Mix, trials: &[Trial], findings: &mut Findings) {
    let is_clear = |trial: &Trial| GOAL_LOSSES.iter().all(|&goal| trial.is_high_loss(goal).is_some());
    let clear: Vec<&Trial> = trials.iter().filter(|trial| is_clear(trial)).collect();
    let disputed = trials.len() - clear.len();
    if disputed > 0 {
        findings.note(format!(
            "{mix}: in {disputed} of {} trials the tool itself was late or lost packets, so that they decide nothing: \
             they were repeated, and are not in the curve of losses.",
            trials.len()
        ));
    }
    findings.losses(mix.name(), &clear);
}

fn near_ceiling(mix: &Mix, name: &str, rate: f64, ceiling: Option<f64>, findings: &mut Findings) {
    if let Some(ceiling) = ceiling.filter(|&ceiling| rate >= ceiling * NEAR_CEILING) {
        findings.note(format!(
            "{mix}, {name}: limited by the tool: it is {:.0} % of the tool's own ceiling of {:.1} kpps.",
            rate / ceiling * 100.0,
            ceiling / 1e3
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(end: End, throughput: f64) -> GoalResult {
        GoalResult { lower: Some(1), upper: None, conditional_throughput: Some(throughput), end }
    }

    #[test]
    fn a_result_near_the_tools_ceiling_says_so() {
        let mix = Mix::packets(64);
        for (rate, marked) in [(89.0, false), (90.0, true), (140.0, true)] {
            let mut findings = Findings::default();
            let found = Found { mix: &mix, ceiling: Some(100.0), max_was_given: false };
            found.tell("NDR", &result(End::Regular, rate), &mut findings);
            assert_eq!(findings.notes.iter().any(|note| note.contains("limited by the tool")), marked, "{rate}");
            assert_eq!(findings.measures[0].samples, [rate / 1e3]);
        }
    }

    #[test]
    fn a_search_that_ended_at_the_tools_limit_says_so() {
        for (end, max_was_given, marked) in [
            (End::MaxLoad, false, true),
            (End::MaxLoad, true, false),
            (End::Ceiling(7_000), true, true),
            (End::MinLoad, false, false),
        ] {
            let mut findings = Findings::default();
            let found = Found { mix: &Mix::packets(64), ceiling: None, max_was_given };
            found.tell("NDR", &result(end, 1.0), &mut findings);
            assert!(findings.notes[0].contains("irregular"), "{:?}", findings.notes);
            assert_eq!(findings.notes[0].contains("limited by the tool"), marked, "{:?}", findings.notes);
        }
    }

    #[test]
    fn the_tools_losses_are_not_drawn_as_the_devices() {
        let trial = |load, loss, certain_loss| {
            let duration = Duration::from_secs(1);
            Trial { load, duration, loss, certain_loss, offered: true }
        };
        let trials = [trial(1000, 0.0, 0.0), trial(2000, 0.3, 0.0), trial(2000, 0.0, 0.0), trial(3000, 0.2, 0.1)];
        let mut findings = Findings::default();
        losses(&Mix::packets(64), &trials, &mut findings);
        assert_eq!(findings.curves[0].points, [(1.0, 0.0), (2.0, 0.0), (3.0, 20.0)]);
        assert!(findings.notes[0].contains("1 of 4 trials"), "{:?}", findings.notes);
    }
}
