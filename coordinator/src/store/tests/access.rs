//! Join tokens and what they admit.

use std::sync::atomic::{AtomicU32, Ordering};

use mesh_proto::ids::{CoordinatorId, NodeId};

use super::Kit;
use crate::store::{
    StoreError,
    access::{Admission, Joining, NewToken, REFUSALS},
    leader,
};

const SECRET: [u8; 32] = [5; 32];

fn token(id: &str, uses: u32, node: Option<&str>, ttl_ms: u64) -> NewToken {
    NewToken {
        id: id.to_owned(),
        secret_hash: mesh_certs::hash_secret(&SECRET),
        node: node.map(str::to_owned),
        uses,
        created_by: "ada".to_owned(),
        ttl_ms,
    }
}

fn joining(token: &str, key: u8, name: &str) -> Joining {
    Joining {
        token_id: token.to_owned(),
        secret: SECRET.to_vec(),
        key_fingerprint: [key; 32],
        name: name.to_owned(),
        vacant: None,
    }
}

impl Kit {
    async fn admit(&self, joining: &Joining) -> Result<(Admission, Vec<u8>), StoreError> {
        let issue = |node: NodeId| Ok(format!("certificate of {node}").into_bytes());
        self.store.admit(self.epoch, joining, issue).await
    }

    /// Why a node is refused.
    async fn refusal(&self, joining: &Joining) -> &'static str {
        match self.admit(joining).await.unwrap().0 {
            Admission::Refused(why) => why,
            other => panic!("admitted: {other:?}"),
        }
    }

    async fn admitted(&self, joining: &Joining) -> (NodeId, String, bool) {
        match self.admit(joining).await.unwrap().0 {
            Admission::Admitted { node, name, returning } => (node, name, returning),
            other => panic!("not admitted: {other:?}"),
        }
    }

    async fn used(&self, id: &str) -> u32 {
        let tokens = self.store.tokens("", 100).await.unwrap();
        tokens.iter().find(|token| token.id == id).unwrap().used
    }

    async fn audited(&self, action: &str) -> i64 {
        sqlx::query_scalar("SELECT count(*) FROM audit WHERE action = $1")
            .bind(action)
            .fetch_one(self.store.pool())
            .await
            .unwrap()
    }
}

#[tokio::test]
async fn of_fifty_who_join_at_once_with_a_token_for_one_exactly_one_is_admitted() {
    let kit = Kit::new().await;
    kit.store.create_token(kit.epoch, &token("t", 1, None, 60_000)).await.unwrap();
    let issued = AtomicU32::new(0);
    let joins: Vec<Joining> = (0..50).map(|key| joining("t", key, &format!("node-{key}"))).collect();
    let all = futures_util::future::join_all(joins.iter().map(async |joining| {
        let issue = |_| {
            issued.fetch_add(1, Ordering::Relaxed);
            Ok::<_, StoreError>(vec![1])
        };
        kit.store.admit(kit.epoch, joining, issue).await.unwrap().0
    }))
    .await;
    let admitted = all.iter().filter(|one| matches!(one, Admission::Admitted { .. })).count();
    let refused = all.iter().filter(|one| matches!(one, Admission::Refused("used up"))).count();
    assert_eq!((admitted, refused), (1, 49));
    assert_eq!(issued.into_inner(), 1, "nobody else even had a certificate made");
    assert_eq!(kit.store.nodes("", 100).await.unwrap().len(), 1);
    assert_eq!(kit.audited("node.join").await, 1);
}

#[tokio::test]
async fn a_lost_reply_is_given_again_to_the_same_key_and_costs_no_use() {
    let kit = Kit::new().await;
    kit.store.create_token(kit.epoch, &token("t", 1, None, 60_000)).await.unwrap();
    let first = kit.admit(&joining("t", 1, "amber")).await.unwrap();
    let Admission::Admitted { node, .. } = first.0 else { panic!("{first:?}") };
    // Whatever became of the token since.
    sqlx::query("UPDATE join_tokens SET expires_at = now() - interval '1 hour'")
        .execute(kit.store.pool())
        .await
        .unwrap();
    let again = kit.admit(&joining("t", 1, "another-name")).await.unwrap().0;
    let Admission::Again { node: same, name, certificate } = again else { panic!("{again:?}") };
    assert_eq!((same, name.as_str(), certificate), (node, "amber", first.1));
    assert_eq!(kit.used("t").await, 1);
    let wrong = Joining { secret: vec![6; 32], ..joining("t", 1, "amber") };
    assert_eq!(kit.refusal(&wrong).await, "wrong secret", "the key alone is no proof");
}

#[tokio::test]
async fn a_token_that_is_not_good_admits_nobody() {
    let kit = Kit::new().await;
    kit.store.create_token(kit.epoch, &token("expired", 5, None, 0)).await.unwrap();
    kit.store.create_token(kit.epoch, &token("revoked", 5, None, 60_000)).await.unwrap();
    kit.store.create_token(kit.epoch, &token("bound", 5, Some("amber"), 60_000)).await.unwrap();
    assert!(kit.store.revoke_token(kit.epoch, "revoked", "ada").await.unwrap());
    assert!(!kit.store.revoke_token(kit.epoch, "unknown", "ada").await.unwrap());
    let short = Joining { secret: SECRET[..31].to_vec(), ..joining("bound", 1, "amber") };
    let empty = Joining { secret: Vec::new(), ..joining("bound", 1, "amber") };
    for (joining, why) in [
        (joining("unknown", 1, "amber"), "unknown token"),
        (joining("b_und", 1, "amber"), "unknown token"),
        (joining("' OR 1=1 --", 1, "amber"), "unknown token"),
        (joining("expired", 1, "amber"), "expired"),
        (joining("revoked", 1, "amber"), "revoked"),
        (joining("bound", 1, "birch"), "for another node"),
        (short, "wrong secret"),
        (empty, "wrong secret"),
    ] {
        assert_eq!(kit.refusal(&joining).await, why);
    }
    assert!(kit.store.nodes("", 10).await.unwrap().is_empty(), "a refused join leaves no node behind");
    for token in ["expired", "revoked", "bound"] {
        assert_eq!(kit.used(token).await, 0);
    }
    assert_eq!(kit.admitted(&joining("bound", 1, "amber")).await.1, "amber");
}

#[tokio::test]
async fn a_name_in_use_is_told_and_costs_no_use() {
    let kit = Kit::new().await;
    kit.store.create_token(kit.epoch, &token("t", 2, None, 60_000)).await.unwrap();
    kit.admitted(&joining("t", 1, "amber")).await;
    let taken = kit.admit(&joining("t", 2, "amber")).await.unwrap().0;
    assert!(matches!(taken, Admission::NameTaken(None)), "{taken:?}");
    assert_eq!(kit.used("t").await, 1);
    kit.admitted(&joining("t", 2, "birch")).await;
}

#[tokio::test]
async fn a_known_key_keeps_its_node_with_a_new_token() {
    let kit = Kit::new().await;
    for id in ["one", "two"] {
        kit.store.create_token(kit.epoch, &token(id, 1, None, 60_000)).await.unwrap();
    }
    let (node, _, returning) = kit.admitted(&joining("one", 1, "amber")).await;
    assert!(!returning);
    assert_eq!(kit.admitted(&joining("two", 1, "renamed")).await, (node, "amber".to_owned(), true));
}

#[tokio::test]
async fn a_certificate_that_cannot_be_made_leaves_nothing() {
    let kit = Kit::new().await;
    kit.store.create_token(kit.epoch, &token("t", 1, None, 60_000)).await.unwrap();
    let failed =
        kit.store.admit(kit.epoch, &joining("t", 1, "amber"), |_| Err(StoreError::Corrupt("test"))).await;
    assert!(matches!(failed, Err(StoreError::Corrupt("test"))));
    assert_eq!(kit.used("t").await, 0);
    kit.admitted(&joining("t", 2, "amber")).await;
}

#[tokio::test]
async fn a_deposed_leader_admits_nobody_and_makes_no_token() {
    let mut kit = Kit::new().await;
    kit.store.create_token(kit.epoch, &token("t", 1, None, 60_000)).await.unwrap();
    let seen = leader::read(&mut kit.connection).await.unwrap();
    leader::take(&mut kit.connection, &seen, CoordinatorId::generate()).await.unwrap();
    let error = kit.admit(&joining("t", 1, "amber")).await.unwrap_err();
    assert!(matches!(error, StoreError::Fenced), "{error}");
    let error = kit.store.create_token(kit.epoch, &token("u", 1, None, 1)).await.unwrap_err();
    assert!(matches!(error, StoreError::Fenced), "{error}");
    let error = kit.store.revoke_token(kit.epoch, "t", "ada").await.unwrap_err();
    assert!(matches!(error, StoreError::Fenced), "{error}");
    assert_eq!(kit.store.tokens("", 10).await.unwrap().len(), 1);
}

#[tokio::test]
async fn pages_of_tokens_are_newest_first_and_complete() {
    let kit = Kit::new().await;
    for id in ["a", "b", "c", "d", "e"] {
        kit.store.create_token(kit.epoch, &token(id, 1, None, 60_000)).await.unwrap();
    }
    let mut seen: Vec<String> = Vec::new();
    loop {
        let after = seen.last().cloned().unwrap_or_default();
        let page = kit.store.tokens(&after, 2).await.unwrap();
        if page.is_empty() {
            break;
        }
        seen.extend(page.into_iter().map(|token| token.id));
    }
    assert_eq!(seen, ["e", "d", "c", "b", "a"]);
    assert!(kit.store.tokens("%", 10).await.unwrap().is_empty(), "an unknown cursor ends the list");
}

#[tokio::test]
async fn of_refusals_the_latest_are_kept_and_of_all_else_everything() {
    let kit = Kit::new().await;
    kit.store.note("ada", "node.cordon", "amber", "").await.unwrap();
    for refusal in 0..3 {
        for action in REFUSALS {
            kit.store.note("192.0.2.7", action, "somebody", &refusal.to_string()).await.unwrap();
        }
    }
    kit.store.forget_refusals(12).await.unwrap();
    assert_eq!(kit.audited(REFUSALS[0]).await, 3, "there were no more than are kept");
    kit.store.forget_refusals(5).await.unwrap();
    assert_eq!(kit.audited(REFUSALS[3]).await, 2);
    let mut kept = 0;
    for action in REFUSALS {
        kept += kit.audited(action).await;
    }
    assert_eq!((kept, kit.audited("node.cordon").await), (5, 1));
}

#[tokio::test]
async fn the_place_of_a_node_that_is_gone_goes_to_who_has_a_token_for_its_name() {
    let kit = Kit::new().await;
    for (id, node) in [("any", None), ("bound", Some("amber"))] {
        kit.store.create_token(kit.epoch, &token(id, 9, node, 60_000)).await.unwrap();
    }
    let (amber, ..) = kit.admitted(&joining("any", 1, "amber")).await;
    // Only a token for the name, and only when the caller knows that the node is gone.
    let anybodys = Joining { vacant: Some(amber), ..joining("any", 2, "amber") };
    let taken = kit.admit(&anybodys).await.unwrap().0;
    assert!(matches!(taken, Admission::NameTaken(None)), "{taken:?}");
    let taken = kit.admit(&joining("bound", 2, "amber")).await.unwrap().0;
    assert!(matches!(taken, Admission::NameTaken(Some(holder)) if holder == amber), "{taken:?}");
    let other = Joining { vacant: Some(NodeId::generate()), ..joining("bound", 2, "amber") };
    let taken = kit.admit(&other).await.unwrap().0;
    assert!(matches!(taken, Admission::NameTaken(Some(_))), "{taken:?}");
    assert_eq!(kit.store.node_key(amber).await.unwrap(), Some(vec![1; 32]), "nothing changed so far");

    let heir = Joining { vacant: Some(amber), ..joining("bound", 2, "amber") };
    assert_eq!(kit.admitted(&heir).await, (amber, "amber".to_owned(), true));
    assert_eq!(kit.store.node_key(amber).await.unwrap(), Some(vec![2; 32]));
    assert_eq!(kit.store.nodes("", 9).await.unwrap().len(), 1);
    assert_eq!(kit.used("bound").await, 1);
}
