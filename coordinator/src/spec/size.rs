//! How large the command line and the environment of each element are, once their templates are
//! replaced: what the kernel would refuse at the node is refused at the submit.

use std::{collections::HashMap, hash::BuildHasher};

use mesh_proto::{
    template::{Element, TemplateError, replace},
    v1::{Item, TaskSpec, array_spec},
};

use super::check::{Limits, SpecError};

/// The size of a task's texts as a function of its element: bytes that are always there, and how
/// often the index, the item, its name and its stem stand in them.
#[derive(Debug, Default, PartialEq, Eq)]
struct Size {
    fixed: usize,
    index: usize,
    item: usize,
    name: usize,
    stem: usize,
}

impl Size {
    /// Adds a text. What stands in it is found by replacing it for elements that differ in one
    /// thing each, so that no second reading of templates has to agree with the first.
    fn add<S: BuildHasher>(
        &mut self,
        text: &str,
        params: &HashMap<String, String, S>,
    ) -> Result<(), TemplateError> {
        let with = |index, item| Ok(replace(text, Some(Element { index, item }), params)?.len());
        let bare = with(0, "")?;
        let index = with(10, "")? - bare;
        // A directory has neither name nor stem; `a` is all three; `a.b` is longer than its stem.
        let item = with(0, "/")? - bare;
        let name_and_stem = with(0, "a")? - bare - item;
        let name = (with(0, "a.b")? - bare - 3 * item - name_and_stem) / 2;
        self.fixed += bare - index;
        self.index += index;
        self.item += item;
        self.name += name;
        self.stem += name_and_stem - name;
        Ok(())
    }

    fn of(&self, element: Element<'_>) -> usize {
        self.fixed
            + self.index * (element.index.checked_ilog10().unwrap_or(0) as usize + 1)
            + self.item * element.item.len()
            + self.name * element.name().len()
            + self.stem * element.stem().len()
    }
}

/// Checks every element of a task; `items` are those of its list, if it has one.
pub fn check_size<S: BuildHasher>(
    task: &TaskSpec,
    params: &HashMap<String, String, S>,
    items: Option<&[Item]>,
    limits: &Limits,
) -> Result<(), SpecError> {
    let words = task.command.iter().map(|word| (word, 1));
    // `KEY=value` and its end.
    let env = task.env.iter().map(|(key, value)| (value, key.len() + 2));
    let Some(array) = &task.array else {
        let mut size = 0;
        for (text, more) in words.chain(env) {
            let replaced = replace(text, None, params);
            size += replaced.map_err(|error| wrong(task, &error))?.len() + more;
        }
        return within(task, None, size, limits);
    };
    let mut size = Size::default();
    for (text, more) in words.chain(env) {
        size.add(text, params).map_err(|error| wrong(task, &error))?;
        size.fixed += more;
    }
    if let Some(items) = items {
        for (item, index) in items.iter().zip(0..) {
            let element = Element { index, item: &item.value };
            within(task, Some(index), size.of(element), limits)?;
        }
    } else if let Some(array_spec::Kind::Range(range)) = &array.kind {
        // The longest number stands at one end, the longest index at the last.
        let last = super::count(task)?.saturating_sub(1) as u32;
        for number in [range.first, range.first.saturating_add(range.step.saturating_mul(i64::from(last)))] {
            let element = Element { index: last, item: &number.to_string() };
            within(task, Some(last), size.of(element), limits)?;
        }
    }
    Ok(())
}

fn wrong(task: &TaskSpec, error: &TemplateError) -> SpecError {
    SpecError::of(&task.name, "command", error.to_string())
}

fn within(task: &TaskSpec, index: Option<u32>, size: usize, limits: &Limits) -> Result<(), SpecError> {
    let most = limits.max_argv_env;
    if size <= most {
        return Ok(());
    }
    let of = index.map(|index| format!(" of element {index}")).unwrap_or_default();
    let what =
        format!("and env{of} are {size} bytes with their templates replaced, at most {most} are allowed");
    Err(SpecError::of(&task.name, "command", what))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_size_is_that_of_the_replaced_text(
            parts in proptest::collection::vec(0_usize..9, 0..12),
            index in any::<u32>(),
            item in "[a-c./]{0,12}",
        ) {
            let words = ["{item}", "{index}", "{name}", "{stem}", "{params.k}", "{", "}", "{x}", "text"];
            let text: String = parts.iter().map(|part| words[*part]).collect();
            let params = HashMap::from([("k".to_owned(), "{item}value".to_owned())]);
            let mut size = Size::default();
            size.add(&text, &params).unwrap();
            let element = Element { index, item: &item };
            prop_assert_eq!(size.of(element), replace(&text, Some(element), &params).unwrap().len());
        }
    }
}
