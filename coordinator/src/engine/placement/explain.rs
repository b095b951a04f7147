//! Why a class goes where it goes, or nowhere: reasons counted, the nearest miss, the best
//! nodes with their terms. Computed when somebody asks; what is recorded of each decision is
//! its short form, [`Decision`].

use std::collections::BTreeMap;

use super::{Coefficients, Nodes, Terms, Unfit, admits};
use crate::engine::{
    node::Node,
    types::{NodeState, Requirements, SandboxLevel, Time},
};

/// Nodes that an explanation names.
pub const BEST: usize = 5;
const MIB: u64 = 1 << 20;

/// A node and what its score is made of.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    pub name: String,
    pub terms: Terms,
    pub score: f64,
    /// Why it cannot take the task now although it suits; none: it can.
    pub busy: Option<String>,
}

/// Nodes that are out of the question for one reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// The reason's kind, a word.
    pub reason: &'static str,
    pub count: u32,
    /// In a sentence, with the nearest miss.
    pub sentence: String,
}

/// What placement says of a class now.
#[derive(Clone, Debug, PartialEq)]
pub struct Survey {
    pub nodes: u32,
    /// Nodes that the filter admits and that take work, and those of them with room.
    pub suitable: u32,
    pub with_room: u32,
    pub rejections: Vec<Rejection>,
    /// The best scores first, at most [`BEST`].
    pub best: Vec<Candidate>,
    pub coefficients: Coefficients,
}

/// The short form of a decision that is kept: one for a class and a tenth of a second.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// Counts up.
    pub id: u64,
    pub at: Time,
    pub nodes: u32,
    pub suitable: u32,
    pub with_room: u32,
    /// By the reason's kind.
    pub rejected: Vec<(&'static str, u32)>,
    pub best: Vec<Candidate>,
    pub coefficients: Coefficients,
}

/// Looks at every node for a class.
#[must_use]
pub fn survey(nodes: &Nodes, wanted: &Requirements, now: Time, by: &Coefficients) -> Survey {
    let mut rejected: BTreeMap<&'static str, Vec<(&Node, Unfit)>> = BTreeMap::new();
    let mut away: BTreeMap<&'static str, u32> = BTreeMap::new();
    let mut best: Vec<Candidate> = Vec::new();
    let (mut suitable, mut with_room) = (0, 0);
    for node in nodes.values() {
        if let Err(unfit) = admits(wanted, node) {
            rejected.entry(unfit.kind()).or_default().push((node, unfit));
            continue;
        }
        if let Some(reason) = not_taking(node) {
            *away.entry(reason).or_default() += 1;
            continue;
        }
        suitable += 1;
        let busy = busy(node, wanted);
        with_room += u32::from(busy.is_none());
        let terms = Terms::of(node, now);
        best.push(Candidate { name: node.record.name.clone(), terms, score: terms.score(by), busy });
    }
    best.sort_by(|a, b| a.score.total_cmp(&b.score).then_with(|| a.name.cmp(&b.name)));
    best.truncate(BEST);
    let mut rejections: Vec<Rejection> = rejected
        .into_iter()
        .map(|(reason, nodes)| Rejection {
            reason,
            count: nodes.len() as u32,
            sentence: sentence(reason, wanted, &nodes),
        })
        .collect();
    rejections.extend(away.into_iter().map(|(reason, count)| Rejection {
        reason,
        count,
        sentence: format!("{} {reason}", number(count, "node is", "nodes are")),
    }));
    rejections.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.reason.cmp(b.reason)));
    Survey { nodes: nodes.len() as u32, suitable, with_room, rejections, best, coefficients: *by }
}

/// `1 node is`, `3 nodes are`.
fn number(count: u32, one: &str, many: &str) -> String {
    if count == 1 { format!("1 {one}") } else { format!("{count} {many}") }
}

/// Why a node that suits gets nothing at all.
fn not_taking(node: &Node) -> Option<&'static str> {
    if node.record.draining {
        Some("draining")
    } else if node.record.cordoned {
        Some("cordoned")
    } else if node.state == NodeState::Offline {
        Some("offline")
    } else if node.state == NodeState::Suspect {
        Some("suspect")
    } else if node.held_until.is_some() {
        Some("left alone for a while after failures")
    } else if node.session.is_none_or(|session| !session.open) {
        Some("connecting")
    } else {
        None
    }
}

/// Why a node that suits cannot begin the task now.
fn busy(node: &Node, wanted: &Requirements) -> Option<String> {
    let share = node.share(&wanted.resources);
    let total = &node.facts.as_ref()?.total;
    if node.used.cpu_millis + share.cpu_millis > total.cpu_millis {
        let free = total.cpu_millis.saturating_sub(node.used.cpu_millis);
        return Some(format!("{} of {} cpu free", cores(free), cores(total.cpu_millis)));
    }
    if node.used.memory + share.memory > total.memory {
        let free = total.memory.saturating_sub(node.used.memory);
        return Some(format!("{} of {} memory free", size(free), size(total.memory)));
    }
    if let Some((name, _)) = share.named.iter().find(|(name, units)| {
        node.used.named.get(*name).copied().unwrap_or(0) + **units
            > total.named.get(*name).copied().unwrap_or(0)
    }) {
        return Some(format!("no {name} free"));
    }
    node.reserved.is_some().then(|| "set aside for a task that waited long".to_owned())
}

fn cores(millis: u64) -> String {
    let text = format!("{}.{:03}", millis / 1000, millis % 1000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn size(bytes: u64) -> String {
    mesh_proto::size::format_size(bytes)
}

/// One reason in words, with the nearest miss.
fn sentence(reason: &'static str, wanted: &Requirements, nodes: &[(&Node, Unfit)]) -> String {
    let count = nodes.len() as u32;
    let lack = number(count, "node lacks", "nodes lack");
    match reason {
        "tag" => nodes
            .iter()
            .find_map(|(_, unfit)| match unfit {
                Unfit::Tag(tag) => Some(tag_sentence(&lack, tag, wanted, nodes)),
                _ => None,
            })
            .unwrap_or(lack),
        "capability" => {
            let missing = nodes.iter().find_map(|(_, unfit)| match unfit {
                Unfit::Capability(name) => Some(name.clone()),
                _ => None,
            });
            let missing = missing.unwrap_or_default();
            let near = nearest(
                &missing,
                nodes.iter().flat_map(|(node, _)| {
                    let facts = node.facts.iter().flat_map(|facts| facts.capabilities.iter());
                    facts.map(|name| (node.record.name.as_str(), name.as_str()))
                }),
            );
            let near = near.map(|(node, name)| format!("; {node} has {name}")).unwrap_or_default();
            format!("{lack} capability {missing}{near}")
        }
        "name" => {
            let asked = wanted.node.clone().unwrap_or_default();
            let near = nearest(&asked, nodes.iter().map(|(node, _)| ("", node.record.name.as_str())));
            let near = near.map(|(_, name)| format!("; there is {name}")).unwrap_or_default();
            format!("{} not called {asked}{near}", number(count, "node is", "nodes are"))
        }
        "size" => {
            let largest = nodes.iter().max_by_key(|(node, _)| {
                node.facts.as_ref().map_or((0, 0), |facts| (facts.total.cpu_millis, facts.total.memory))
            });
            let largest = largest.and_then(|(node, _)| {
                let total = &node.facts.as_ref()?.total;
                // Machines have odd numbers of bytes: whole MiB say enough.
                let memory = if total.memory < MIB { total.memory } else { total.memory / MIB * MIB };
                let has = format!("{} cpu and {}", cores(total.cpu_millis), size(memory));
                Some(format!("; the largest of them, {}, has {has}", node.record.name))
            });
            let asked = &wanted.resources;
            let memory =
                if asked.memory > 0 { format!(" and {}", size(asked.memory)) } else { String::new() };
            let named: Vec<String> =
                asked.named.iter().map(|(name, units)| format!(" and {units} {name}")).collect();
            let named = named.concat();
            format!(
                "{} too small for {} cpu{memory}{named}{}",
                number(count, "node is", "nodes are"),
                cores(asked.cpu_millis),
                largest.unwrap_or_default()
            )
        }
        "os" => format!("{lack} os {}", wanted.os.clone().unwrap_or_default()),
        "arch" => format!("{lack} arch {}", wanted.arch.clone().unwrap_or_default()),
        "sandbox" => {
            let level = match wanted.sandbox {
                SandboxLevel::Unspecified | SandboxLevel::None => "none",
                SandboxLevel::Basic => "basic",
                SandboxLevel::Strict => "strict",
            };
            format!("{} not run tasks at sandbox level {level}", number(count, "node does", "nodes do"))
        }
        "limits" => format!("{lack} limits held by a cgroup"),
        "network" => {
            format!("{} not lend tasks their network", number(count, "node does", "nodes do"))
        }
        "mount" => {
            let missing = nodes.iter().find_map(|(_, unfit)| match unfit {
                Unfit::Mount(name) => Some(name.clone()),
                _ => None,
            });
            let missing = missing.unwrap_or_default();
            let to = if wanted.mounts.get(&missing) == Some(&true) { "write" } else { "read" };
            format!("{} not allow the mount {missing} to {to}", number(count, "node does", "nodes do"))
        }
        _ => format!(
            "{} not registered since the coordinator started",
            number(count, "node has", "nodes have")
        ),
    }
}

fn tag_sentence(lack: &str, tag: &str, wanted: &Requirements, nodes: &[(&Node, Unfit)]) -> String {
    let value = wanted.tags.get(tag).cloned().unwrap_or_default();
    let tags: Vec<(&str, BTreeMap<String, String>)> =
        nodes.iter().map(|(node, _)| (node.record.name.as_str(), node.tags())).collect();
    let values = tags.iter().filter_map(|(node, tags)| Some((*node, tags.get(tag)?.as_str())));
    let near = nearest(&value, values).map(|(node, other)| format!("; {node} has {tag}={other}"));
    let near = near.or_else(|| {
        let names = tags.iter().flat_map(|(node, tags)| tags.keys().map(|name| (*node, name.as_str())));
        let (node, name) = nearest(tag, names)?;
        Some(format!("; {node} has {name}={}", tags.iter().find(|(of, _)| *of == node)?.1.get(name)?))
    });
    format!("{lack} tag {tag}={value}{}", near.unwrap_or_default())
}

/// The word most like `asked`, if any is like it at all.
fn nearest<'a>(asked: &str, words: impl Iterator<Item = (&'a str, &'a str)>) -> Option<(&'a str, &'a str)> {
    words
        .map(|(node, word)| (distance(asked, word), node, word))
        .filter(|(distance, _, word)| *distance * 2 <= asked.chars().count().max(word.chars().count()))
        .min()
        .map(|(_, node, word)| (node, word))
}

/// Edits that turn one word into another (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut corner = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let change = corner + usize::from(x != *y);
            corner = row[j + 1];
            row[j + 1] = change.min(corner + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_count_edits() {
        for (a, b, edits) in [("", "", 0), ("attic", "attick", 1), ("lab", "", 3), ("kitten", "sitting", 3)] {
            assert_eq!(distance(a, b), edits, "{a} {b}");
        }
    }

    #[test]
    fn only_a_like_word_is_near() {
        let words = [("office-2", "attick"), ("lab", "cellar")];
        assert_eq!(nearest("attic", words.into_iter()), Some(("office-2", "attick")));
        assert_eq!(nearest("roof", words.into_iter()), None);
    }
}
