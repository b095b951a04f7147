//! Lists whose rows are long: each page fits its message, and nothing is left out.

use mesh_proto::{
    limits::MAX_MESSAGE,
    v1::{ArraySpec, Item, ItemList, ListTasksRequest, Page, TaskSpec, array_spec},
};
use prost::Message as _;

use super::Mesh;
use crate::testing::{job, task};

#[tokio::test]
async fn tasks_with_long_items_are_listed_in_pages_that_fit() {
    let mesh = Mesh::new().await;
    let items: Vec<Item> =
        (0..300).map(|at| Item { value: format!("{at}-{}", "x".repeat(10_000)), file: None }).collect();
    let array = Some(ArraySpec { kind: Some(array_spec::Kind::Items(ItemList { items })) });
    let number = mesh.submit(job(vec![TaskSpec { array, ..task("many") }])).await;
    let (mut after, mut seen) = (String::new(), Vec::new());
    loop {
        let request = ListTasksRequest {
            job: number.to_string(),
            page: Some(Page { limit: 1000, after }),
            ..ListTasksRequest::default()
        };
        let answer = mesh.jobs().list_tasks(request).await.unwrap().into_inner();
        assert!(answer.encoded_len() < MAX_MESSAGE / 2, "{} bytes", answer.encoded_len());
        seen.extend(answer.tasks.iter().map(|task| task.item.split('-').next().unwrap().to_owned()));
        after = answer.next;
        if after.is_empty() {
            break;
        }
    }
    assert_eq!(seen, (0..300).map(|at: u32| at.to_string()).collect::<Vec<_>>());
}
