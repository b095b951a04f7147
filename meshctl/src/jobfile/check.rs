//! What can be said of a task once its array is known: templates stand for something, paths
//! stay inside the work directory, argv and environment fit.

use std::collections::HashSet;

use mesh_proto::{
    limits, names,
    template::{self, Element, TemplateError},
};

use super::{
    elements::Elements,
    inputs::Params,
    model::{Action, Task},
    problem::{Pos, Problem, Spot},
    tree::quote,
};

/// Checks one task; `elements` is its array.
pub fn task(task: &Task, elements: Option<&Elements>, params: &Params) -> Result<(), Problem> {
    let sample = elements.map(Elements::longest).unwrap_or_default();
    let value = elements.map(|elements| elements.value(sample)).unwrap_or_default();
    let element = elements.map(|_| Element { index: sample, item: &value });
    let replaced = |spot: &Spot<String>| replace(spot, element, params);

    let mut size = 0;
    let add = |size: &mut usize, at: Pos, more: usize| {
        *size += more + 1;
        if *size > limits::MAX_ARGV_ENV {
            return Err(Problem::at(
                at,
                "the command and the environment together are too long",
                format!("at most {} bytes; long data belongs into an input file", limits::MAX_ARGV_ENV),
            ));
        }
        Ok(())
    };
    if let Action::Command(words) = &task.action {
        for word in words {
            add(&mut size, word.at, replaced(word)?.len())?;
        }
    }
    for (name, value) in &task.env {
        add(&mut size, value.at, name.value.len() + 1 + replaced(value)?.len())?;
    }
    for input in &task.inputs {
        replaced(&input.from)?;
        input.to.as_ref().map(replaced).transpose()?;
    }
    for spot in &task.outputs {
        output(&replaced(spot)?, spot.at)?;
        if let Some(Elements::List(items)) = elements
            && template::names_element(&spot.value)
        {
            for (index, item) in items.iter().enumerate() {
                let element = Element { index: index as u32, item: &item.value };
                output(&replace(spot, Some(element), params)?, spot.at)?;
            }
        }
    }
    Ok(())
}

fn output(path: &str, at: Pos) -> Result<(), Problem> {
    names::check_path(path).map_err(|error| {
        Problem::at(
            at,
            format!("the output {} {}", quote(path), names::escape(&error.to_string())),
            "a path or glob inside the work directory",
        )
    })?;
    if path == "inputs" || path.starts_with("inputs/") {
        return Err(Problem::at(
            at,
            format!(
                "the output {} is inside `inputs/`, where the outputs of needed tasks arrive",
                quote(path)
            ),
            "another directory",
        ));
    }
    Ok(())
}

fn replace(spot: &Spot<String>, element: Option<Element>, params: &Params) -> Result<String, Problem> {
    template::replace(&spot.value, element, params).map_err(|error| {
        let expected = match &error {
            TemplateError::NoArray(_) => "`array`, or text without it".to_owned(),
            TemplateError::NoParam(name) => {
                format!("it in `params`, or `--set {}=VALUE`", names::escape(name))
            }
        };
        Problem::at(spot.at, names::escape(&error.to_string()), expected)
    })
}

/// The parameters that the strings of a task name.
pub fn params_used(task: &Task, used: &mut HashSet<String>) {
    let words = match &task.action {
        Action::Command(words) => words.as_slice(),
        Action::Script(_) => &[],
    };
    let env = task.env.iter().map(|(_, value)| value);
    let inputs = task.inputs.iter().flat_map(|input| [Some(&input.from), input.to.as_ref()]).flatten();
    for spot in words.iter().chain(env).chain(inputs).chain(&task.outputs) {
        let mut rest = spot.value.as_str();
        while let Some(start) = rest.find("{params.") {
            rest = &rest[start + "{params.".len()..];
            if let Some(end) = rest.find('}') {
                used.insert(rest[..end].to_owned());
            }
        }
    }
}
