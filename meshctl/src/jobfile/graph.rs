//! What tasks need of each other: known names, no cycle, arrays of equal length.

use std::collections::{HashMap, HashSet};

use super::{
    fields::nearest,
    model::Need,
    problem::{Pos, Problem},
    tree::shorten,
};

/// One task as the checks see it.
pub struct Vertex<'a> {
    pub name: &'a str,
    pub at: Pos,
    pub needs: &'a [Need],
    /// Elements of its array, none for a single task.
    pub elements: Option<u64>,
}

/// Names are unique, needs exist, and nothing waits for itself.
pub fn check(tasks: &[Vertex]) -> Result<(), Problem> {
    let mut positions: HashMap<&str, usize> = HashMap::new();
    for (position, task) in tasks.iter().enumerate() {
        if positions.insert(task.name, position).is_some() {
            return Err(Problem::at(
                task.at,
                format!("there are two tasks with the name `{}`", task.name),
                "a name of its own for each",
            ));
        }
    }
    for task in tasks {
        let mut seen = HashSet::new();
        for need in task.needs {
            if !positions.contains_key(need.task.as_str()) {
                let names: Vec<&str> = tasks.iter().map(|task| task.name).collect();
                return Err(Problem::at(
                    need.at,
                    format!("`needs` names `{}`, and there is no such task", shorten(&need.task)),
                    match nearest(&need.task, &names) {
                        Some(near) => format!("`{near}`, by the look of it"),
                        None => "the name of a task of this job".to_owned(),
                    },
                ));
            }
            if !seen.insert(&need.task) {
                return Err(Problem::at(need.at, format!("`{}` is needed twice", need.task), "once"));
            }
        }
    }
    cycle(tasks, &positions)
}

fn cycle(tasks: &[Vertex], positions: &HashMap<&str, usize>) -> Result<(), Problem> {
    let needs = |task: usize| {
        tasks[task].needs.iter().filter_map(|need| positions.get(need.task.as_str()).map(|at| (*at, need)))
    };
    let mut waiting: Vec<usize> = vec![0; tasks.len()];
    let mut dependants: Vec<Vec<usize>> = vec![Vec::new(); tasks.len()];
    for (task, count) in waiting.iter_mut().enumerate() {
        for (needed, _) in needs(task) {
            *count += 1;
            dependants[needed].push(task);
        }
    }
    let mut ready: Vec<usize> = (0..tasks.len()).filter(|task| waiting[*task] == 0).collect();
    while let Some(task) = ready.pop() {
        for dependant in &dependants[task] {
            waiting[*dependant] -= 1;
            if waiting[*dependant] == 0 {
                ready.push(*dependant);
            }
        }
    }
    let Some(stuck) = waiting.iter().position(|count| *count > 0) else { return Ok(()) };
    // Whoever is stuck needs somebody who is stuck: walking on must come round.
    let mut path = vec![stuck];
    loop {
        let last = path[path.len() - 1];
        let Some((next, need)) = needs(last).find(|(needed, _)| waiting[*needed] > 0) else { return Ok(()) };
        if let Some(start) = path.iter().position(|task| *task == next) {
            let mut names: Vec<&str> = path[start..].iter().map(|task| tasks[*task].name).collect();
            names.push(tasks[next].name);
            return Err(Problem::at(
                need.at,
                format!("the tasks need each other in a cycle: {}", short_cycle(&names)),
                "needs without a cycle",
            ));
        }
        path.push(next);
    }
}

fn short_cycle(names: &[&str]) -> String {
    const MOST: usize = 12;
    if names.len() <= MOST {
        return names.join(" → ");
    }
    format!("{} → … → {}", names[..MOST - 2].join(" → "), names[names.len() - 1])
}

/// `same_index` pairs the elements of two arrays, which must have as many each.
pub fn check_same_index(tasks: &[Vertex]) -> Result<(), Problem> {
    let elements: HashMap<&str, Option<u64>> = tasks.iter().map(|task| (task.name, task.elements)).collect();
    for task in tasks {
        for need in task.needs.iter().filter(|need| need.same_index) {
            let theirs = elements.get(need.task.as_str()).copied().flatten();
            let wrong = match (task.elements, theirs) {
                (Some(ours), Some(theirs)) if ours == theirs => continue,
                (Some(ours), Some(theirs)) => {
                    format!("`{}` has {ours} elements and `{}` has {theirs}", task.name, need.task)
                }
                (None, _) => format!("`{}` is no array", task.name),
                (_, None) => format!("`{}` is no array", need.task),
            };
            return Err(Problem::at(
                need.at,
                format!("`same_index`: {wrong}"),
                "two arrays with as many elements each",
            ));
        }
    }
    Ok(())
}
