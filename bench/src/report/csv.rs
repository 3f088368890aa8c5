//! A report as CSV (RFC 4180), one row per sample or point of a curve, for a spreadsheet or a data frame.
//!
//! ```text
//! kind,subject,quantity,unit,better,round,x,y
//! sample,kernel,"TCP, 1 stream",Gbit/s,higher,1,,11.9
//! point,kernel,Latency,µs,,,99.9,700
//! ```
//! Rounds count from 1; a round without a sample has no row. The context of the measurement is in rows of the kind
//! `context`, with the name in the column `quantity` and the text in `subject`; notes are in rows of the kind `note`.

use std::io;

use super::{Better, Report};

const COLUMNS: [&str; 8] = ["kind", "subject", "quantity", "unit", "better", "round", "x", "y"];

/// Writes the whole report.
///
/// # Errors
/// Those of `into`.
pub fn write(report: &Report, into: impl io::Write) -> io::Result<()> {
    let mut rows = csv::Writer::from_writer(into);
    rows.write_record(COLUMNS)?;
    for (name, text) in &report.context {
        rows.write_record(["context", text, name, "", "", "", "", ""])?;
    }
    for note in &report.notes {
        rows.write_record(["note", note, "", "", "", "", "", ""])?;
    }
    for measure in &report.measures {
        let better = match measure.better {
            Better::Higher => "higher",
            Better::Lower => "lower",
        };
        for (round, sample) in measure.by_round() {
            let (round, sample) = (round.to_string(), sample.to_string());
            let [subject, quantity, unit] = [&measure.subject, &measure.quantity, &measure.unit];
            rows.write_record(["sample", subject, quantity, unit, better, &round, "", &sample])?;
        }
    }
    for curve in &report.curves {
        for (x, y) in &curve.points {
            let (x, y) = (x.to_string(), y.to_string());
            rows.write_record(["point", &curve.subject, &curve.quantity, &curve.y.unit, "", "", &x, &y])?;
        }
    }
    rows.flush()
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn every_sample_and_every_text_reads_back() {
        let mut report = sample::report();
        report.measures[0].subject = "a \"quoted\", comma\nand line".into();
        report.measures[1].rounds = vec![1, 3, 4];
        let mut written = Vec::new();
        write(&report, &mut written).expect("memory");
        let mut rows = csv::Reader::from_reader(&written[..]);
        assert_eq!(rows.headers().expect("a header"), &COLUMNS[..]);
        let rows: Vec<csv::StringRecord> = rows.records().collect::<Result<_, _>>().expect("rows of one length");
        let of_kind = |kind: &str| rows.iter().filter(|row| &row[0] == kind).collect::<Vec<_>>();
        let samples = of_kind("sample");
        assert_eq!(samples.len(), report.measures.iter().map(|m| m.samples.len()).sum::<usize>());
        assert_eq!(&samples[1][1], "a \"quoted\", comma\nand line");
        assert_eq!((&samples[1][2], &samples[1][3]), ("TCP, 1 stream", "Gbit/s"));
        assert_eq!((&samples[1][5], samples[1][7].parse()), ("2", Ok(8.83)));
        assert_eq!((&samples[4][5], samples[4][7].parse()), ("3", Ok(60.0)), "round 2 failed");
        assert_eq!(of_kind("point").len(), report.curves.iter().map(|c| c.points.len()).sum::<usize>());
        assert_eq!((of_kind("context").len(), of_kind("note").len()), (2, 1));
    }
}
