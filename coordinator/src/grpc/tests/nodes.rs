//! Nodes as operators see them.

use std::collections::HashMap;

use mesh_proto::{
    code::Code,
    v1::{
        CordonRequest, DrainRequest, GetNodeRequest, GetStatusRequest, ListNodesRequest, NodeState, Page,
        TagRequest, UncordonRequest,
    },
};

use super::{Mesh, until};
use crate::testing::{array, job};

#[tokio::test]
async fn nodes_are_listed_by_pages_with_what_is_known_of_them_now() {
    let mesh = Mesh::new().await;
    for name in ["cedar", "amber", "birch"] {
        mesh.silent_node(name, 2).await;
    }
    mesh.joined_agent("dogwood").await;
    mesh.submit(job(vec![array("a", 6)])).await;
    let (mut after, mut all) = (String::new(), Vec::new());
    loop {
        let page = Some(Page { limit: 3, after });
        let answer = mesh.nodes().list_nodes(ListNodesRequest { page }).await.unwrap().into_inner();
        all.extend(answer.nodes);
        after = answer.next;
        if after.is_empty() {
            break;
        }
    }
    let seen: Vec<_> = all.iter().map(|node| (node.name.as_str(), node.state(), node.slots_total)).collect();
    let healthy = NodeState::Healthy;
    let expected = [
        ("amber", healthy, 2),
        ("birch", healthy, 2),
        ("cedar", healthy, 2),
        ("dogwood", NodeState::Offline, 0),
    ];
    assert_eq!(seen, expected);
    assert_eq!(all.iter().map(|node| node.slots_free).sum::<u32>(), 0, "six tasks on six slots");
}

#[tokio::test]
async fn an_operator_changes_a_node_by_name_or_id_and_that_is_noted() {
    let mesh = Mesh::new().await;
    let id = mesh.silent_node("amber", 1).await.id.to_string();
    let cordoned =
        mesh.nodes().cordon(CordonRequest { node: "amber".to_owned() }).await.unwrap().into_inner();
    assert!(cordoned.cordoned);
    let free = mesh.nodes().uncordon(UncordonRequest { node: id.clone() }).await.unwrap().into_inner();
    assert!(!free.cordoned);
    let drained = mesh.nodes().drain(DrainRequest { node: id.clone() }).await.unwrap().into_inner();
    assert!(drained.draining);
    let tag = |name: &str, value: &str| TagRequest {
        node: id.clone(),
        set: HashMap::from([(name.to_owned(), value.to_owned())]),
        remove: Vec::new(),
    };
    let tagged = mesh.nodes().tag(tag("rack", "b2")).await.unwrap().into_inner();
    assert_eq!(tagged.facts.unwrap().tags["rack"], "b2");
    for bad in [tag("A", "x"), tag("rack", "a\nb"), tag("rack", &"x".repeat(257))] {
        assert_eq!(Code::of(&mesh.nodes().tag(bad).await.unwrap_err()), Code::Invalid);
    }
    let untag = TagRequest { node: id, set: HashMap::new(), remove: vec!["rack".to_owned()] };
    assert!(mesh.nodes().tag(untag).await.unwrap().into_inner().facts.unwrap().tags.is_empty());
    let status = mesh.nodes().get_node(GetNodeRequest { node: "none".to_owned() }).await.unwrap_err();
    assert_eq!(Code::of(&status), Code::NotFound);
    for action in ["node.cordon", "node.uncordon", "node.drain"] {
        assert_eq!(mesh.audited(action).await, 1, "{action}");
    }
}

#[tokio::test]
async fn the_status_counts_what_there_is() {
    let mesh = Mesh::new().await;
    mesh.silent_node("amber", 2).await;
    mesh.submit(job(vec![array("a", 6)])).await;
    until(async || {
        let status = mesh.nodes().get_status(GetStatusRequest {}).await.unwrap().into_inner();
        let tasks = status.tasks.unwrap();
        status.nodes["healthy"] == 1 && status.slots_total == 2 && tasks.assigned + tasks.queued == 6
    })
    .await;
}

#[tokio::test]
async fn a_node_that_joined_and_never_came_is_changed_all_the_same() {
    let mesh = Mesh::new().await;
    mesh.joined_agent("dogwood").await;
    let node = || "dogwood".to_owned();
    let cordoned = mesh.nodes().cordon(CordonRequest { node: node() }).await.unwrap().into_inner();
    assert_eq!((cordoned.cordoned, cordoned.state()), (true, NodeState::Offline));
    mesh.nodes().drain(DrainRequest { node: node() }).await.unwrap();
    let set = HashMap::from([("rack".to_owned(), "b2".to_owned())]);
    mesh.nodes().tag(TagRequest { node: node(), set, remove: Vec::new() }).await.unwrap();
    let known = mesh.nodes().get_node(GetNodeRequest { node: node() }).await.unwrap().into_inner();
    assert!(known.cordoned && known.draining && known.facts.unwrap().tags["rack"] == "b2");
}
