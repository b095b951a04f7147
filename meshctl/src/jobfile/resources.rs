//! `resources`: processors, memory and named units.

use mesh_proto::{names, v1};

use super::{
    fields, later,
    problem::Problem,
    tree::{Node, Value},
};

/// More processors than a machine has.
const MAX_CPU: f64 = 100_000.0;
const MAX_UNITS: u64 = 1_000_000_000;
const KNOWN: [&str; 4] = ["cpu", "memory", "gpu", "disk"];

/// One processor and the node's share of memory, when nothing is said.
pub fn default() -> v1::Resources {
    v1::Resources { cpu_millis: 1000, ..v1::Resources::default() }
}

pub fn parse(node: Option<&Node>) -> Result<v1::Resources, Problem> {
    let mut resources = default();
    let Some(node) = node else { return Ok(resources) };
    for (key, value) in fields::entries(node, "`resources`")? {
        match key.name.as_str() {
            "cpu" => resources.cpu_millis = cpu(value)?,
            "memory" => resources.memory_bytes = fields::size(value, "`memory`")?,
            "gpu" => return Err(later::not_yet(key.at, "`gpu`")),
            "disk" => return Err(later::not_yet(key.at, "`disk`")),
            name => {
                let units = named(key.at, name, value)?;
                resources.named.insert(name.to_owned(), units);
            }
        }
    }
    Ok(resources)
}

fn cpu(node: &Node) -> Result<u32, Problem> {
    let cores = fields::number(node, "`cpu`", 0.001, MAX_CPU)?;
    Ok((cores * 1000.0).round() as u32)
}

/// Thousandths of a core from a flag's text.
pub fn cpu_millis(text: &str) -> Result<u32, String> {
    let cores: f64 = text.parse().map_err(|_| format!("{text:?} is no number of processors"))?;
    if cores.is_finite() && (0.001..=MAX_CPU).contains(&cores) {
        Ok((cores * 1000.0).round() as u32)
    } else {
        Err(format!("{text} processors; expected 0.001 to {MAX_CPU}"))
    }
}

fn named(at: super::problem::Pos, name: &str, value: &Node) -> Result<u64, Problem> {
    if names::check_name(name).is_err() {
        fields::check_name(name, at, "the resource")?;
    }
    let what = format!("the resource `{name}`");
    match (&value.value, fields::nearest(name, &KNOWN)) {
        (Value::Plain(text), _) if text.parse::<u64>().is_ok() => fields::whole(value, &what, 1, MAX_UNITS),
        (_, Some(near)) => Err(Problem::at(
            at,
            format!("{what} is {}", value.describe()),
            format!("a whole number of units, or did you mean `{near}`?"),
        )),
        (_, None) => fields::whole(value, &what, 1, MAX_UNITS),
    }
}
