//! What was measured, as a table for people and as JSON for programs.

use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Value, json};

use crate::stats::median;

/// One measured figure.
#[derive(Clone, Debug)]
pub struct Figure {
    /// Of the list of figures: `P1`.
    pub id: &'static str,
    pub what: String,
    pub unit: &'static str,
    /// One value for each run.
    pub runs: Vec<f64>,
    pub floor: Option<Floor>,
    /// What it is to be, for the reader.
    pub target: &'static str,
}

/// What the machine itself needs for the least that must happen, run by run.
#[derive(Clone, Debug)]
pub struct Floor {
    pub what: &'static str,
    pub runs: Vec<f64>,
}

impl Figure {
    #[must_use]
    pub fn new(id: &'static str, what: impl Into<String>, unit: &'static str, runs: Vec<f64>) -> Self {
        Self { id, what: what.into(), unit, runs, floor: None, target: "" }
    }

    #[must_use]
    pub fn target(mut self, target: &'static str) -> Self {
        self.target = target;
        self
    }

    /// The floor's runs belong to the figure's one by one.
    #[must_use]
    pub fn floor(mut self, what: &'static str, runs: Vec<f64>) -> Self {
        self.floor = Some(Floor { what, runs });
        self
    }

    #[must_use]
    pub fn median(&self) -> f64 {
        median(&self.runs)
    }

    /// The median of the runs' ratios to their own floors.
    #[must_use]
    pub fn ratio(&self) -> Option<f64> {
        let floor = self.floor.as_ref()?;
        let ratios: Vec<f64> = self
            .runs
            .iter()
            .zip(&floor.runs)
            .filter(|(_, floor)| **floor > 0.0)
            .map(|(run, floor)| run / floor)
            .collect();
        (!ratios.is_empty()).then(|| median(&ratios))
    }

    #[must_use]
    pub fn json(&self) -> Value {
        json!({
            "id": self.id,
            "what": self.what,
            "unit": self.unit,
            "median": self.median(),
            "runs": self.runs,
            "floor": self.floor.as_ref().map(|floor| json!({
                "what": floor.what, "median": median(&floor.runs), "runs": floor.runs,
            })),
            "ratio": self.ratio(),
            "target": self.target,
        })
    }
}

/// The table.
#[must_use]
pub fn table(figures: &[Figure]) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(["", "figure", "median", "runs", "floor of the same run", "ratio", "target"]);
    let mut last = "";
    for figure in figures {
        let id = if figure.id == last { "" } else { figure.id };
        last = figure.id;
        let floor = figure
            .floor
            .as_ref()
            .map(|floor| format!("{} ({})", number(median(&floor.runs)), floor.what))
            .unwrap_or_default();
        let spread =
            match (crate::stats::quantile(&figure.runs, 0.0), crate::stats::quantile(&figure.runs, 1.0)) {
                _ if figure.runs.len() < 2 => String::new(),
                (low, high) => format!("{}–{}", number(low), number(high)),
            };
        table.add_row([
            id.to_owned(),
            figure.what.clone(),
            format!("{} {}", number(figure.median()), figure.unit),
            spread,
            floor,
            figure.ratio().map(|ratio| format!("{ratio:.2}")).unwrap_or_default(),
            figure.target.to_owned(),
        ]);
    }
    for column in [2, 3, 5] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.to_string()
}

/// What one task costs in a setting, and how much more or less than in another.
#[derive(Clone, Debug)]
pub struct Cost {
    pub what: String,
    /// The place, in the same list, of the setting that this one is compared with.
    against: Option<usize>,
    /// Microseconds, one value for each run.
    pub wall: Vec<f64>,
    /// Microseconds of processor, likewise.
    pub processor: Vec<f64>,
}

impl Cost {
    #[must_use]
    pub fn new(what: impl Into<String>, against: Option<usize>) -> Self {
        Self { what: what.into(), against, wall: Vec::new(), processor: Vec::new() }
    }

    pub fn push(&mut self, wall: f64, processor: f64) {
        self.wall.push(wall);
        self.processor.push(processor);
    }

    /// The same in a list that has so many others before.
    #[must_use]
    pub fn moved(mut self, places: usize) -> Self {
        self.against = self.against.map(|place| place + places);
        self
    }

    /// Time and processor time above those of the other setting, medians of the runs' differences.
    #[must_use]
    pub fn more(&self, all: &[Self]) -> Option<[f64; 2]> {
        let other = all.get(self.against?)?;
        let more = |these: &[f64], those: &[f64]| {
            median(&these.iter().zip(those).map(|(this, that)| this - that).collect::<Vec<_>>())
        };
        Some([more(&self.wall, &other.wall), more(&self.processor, &other.processor)])
    }

    #[must_use]
    pub fn json(&self, all: &[Self]) -> Value {
        json!({
            "what": self.what,
            "against": self.against.and_then(|place| all.get(place)).map(|other| &other.what),
            "wall_us": self.wall,
            "processor_us": self.processor,
            "more": self.more(all),
        })
    }
}

/// The table of costs.
#[must_use]
pub fn costs(all: &[Cost]) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header([
        "one task at a time",
        "time, µs",
        "against its base",
        "processor, µs",
        "against its base",
    ]);
    for cost in all {
        let [wall, processor] =
            cost.more(all).map_or_else(Default::default, |more| more.map(|more| format!("{more:+.0}")));
        table.add_row([
            cost.what.clone(),
            number(median(&cost.wall)),
            wall,
            number(median(&cost.processor)),
            processor,
        ]);
    }
    for column in 1..5 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.to_string()
}

/// Three digits that count.
fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_taken_run_by_run() {
        // The machine was half as fast during the second run; the ratio does not see it.
        let figure = Figure::new("P1", "tasks", "/s", vec![500.0, 250.0, 500.0])
            .floor("starts", vec![1000.0, 500.0, 1000.0]);
        assert_eq!(figure.ratio(), Some(0.5));
        let text = table(&[figure]);
        assert!(text.contains("500 /s") && text.contains("1000 (starts)") && text.contains("0.50"), "{text}");
    }

    #[test]
    fn a_layer_costs_what_it_adds_to_its_base() {
        let mut costs_of_both = [Cost::new("bare", None), Cost::new("with a wall", Some(0))];
        for slow in [1.0, 3.0, 1.0] {
            costs_of_both[0].push(100.0 * slow, 50.0);
            costs_of_both[1].push(130.0 * slow, 45.0);
        }
        assert_eq!(costs_of_both[0].more(&costs_of_both), None);
        let text = costs(&costs_of_both);
        assert!(text.contains("+30") && text.contains("-5"), "{text}");
    }
}
