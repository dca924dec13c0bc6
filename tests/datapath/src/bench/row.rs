//! Samples to the line that is printed.

use std::path::PathBuf;

/// Samples of one measurement.
#[derive(Default)]
pub(crate) struct Row {
    pub(crate) id: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) object: usize,
    /// 4 or 6; 0 where it says nothing.
    pub(crate) family: u8,
    pub(crate) services: u32,
    pub(crate) flows: u32,
    pub(crate) repeat: u32,
    pub(crate) samples: Vec<f64>,
}

impl Row {
    pub(crate) fn push(&mut self, sample: f64) {
        self.samples.push(sample);
    }

    pub(crate) fn line(&self, objects: &[PathBuf]) -> serde_json::Value {
        let mut sorted = self.samples.clone();
        sorted.sort_by(f64::total_cmp);
        let at = |part: f64| sorted[((sorted.len() - 1) as f64 * part) as usize];
        let median = at(0.5);
        let marked = if self.id == "pkt.empty" {
            self.samples
                .iter()
                .filter(|one| **one >= 2.0 * median)
                .count()
        } else {
            0
        };
        let mut line = serde_json::json!({
            "id": self.id,
            "unit": self.unit,
            "n": sorted.len(),
            "min": at(0.0),
            "median": median,
            "p99": at(0.99),
            "services": self.services,
            "flows": self.flows,
            "repeat": self.repeat,
            "marked": marked,
        });
        if self.family != 0 {
            line["family"] = self.family.into();
        }
        if objects.len() > 1 {
            line["object"] = objects[self.object].display().to_string().into();
        }
        line
    }
}
