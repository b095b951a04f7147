//! Nodes as people read them.

use super::Kit;
use crate::testing::joined;

#[tokio::test]
async fn pages_of_nodes_are_ordered_bytewise_and_complete() {
    let kit = Kit::new().await;
    for name in ["b-2", "a", "b_1", "b.3", "a0", "b"] {
        joined(kit.store.pool(), name).await;
    }
    let mut names: Vec<String> = Vec::new();
    loop {
        let after = names.last().cloned().unwrap_or_default();
        let page = kit.store.nodes(&after, 2).await.unwrap();
        if page.is_empty() {
            break;
        }
        names.extend(page.into_iter().map(|node| node.record.name));
    }
    assert_eq!(names, ["a", "a0", "b", "b-2", "b.3", "b_1"]);
}

#[tokio::test]
async fn a_node_called_like_the_id_of_another_does_not_hide_it() {
    let kit = Kit::new().await;
    let victim = joined(kit.store.pool(), "amber").await;
    let decoy = joined(kit.store.pool(), &victim.id.to_string()).await;
    assert_eq!(kit.store.node_id("amber").await.unwrap(), Some(victim.id));
    assert_eq!(kit.store.node_id(&victim.id.to_string()).await.unwrap(), Some(victim.id));
    assert_eq!(kit.store.node_id(&decoy.id.to_string()).await.unwrap(), Some(decoy.id));
    for no in ["%", "ambe_", "", "amber' OR '1'='1"] {
        assert_eq!(kit.store.node_id(no).await.unwrap(), None, "{no:?}");
    }
}
