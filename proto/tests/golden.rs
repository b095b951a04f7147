//! What every version says is still understood: see `golden/README.md`.

use std::{fs, path::PathBuf};

use bytes::Bytes;
use mesh_proto::{PROTOCOL_VERSION, v1::*, version::OLDEST_PROTOCOL};
use prost::Message;

/// Calls a macro with each kind of message and its example. One entry at the most in each map:
/// their order is nobody's promise.
macro_rules! examples {
    ($each:ident) => {
        $each!(RegisterNodeRequest {
            protocol: PROTOCOL_VERSION,
            oldest_protocol: OLDEST_PROTOCOL,
            boot_id: "0190b6a5-0000-7000-8000-000000000001".to_owned(),
            facts: Some(facts()),
            inventory: vec![InventoryItem {
                attempt: Some(attempt()),
                state: InventoryState::Running.into()
            }],
            seen: None,
            taken_at_us: 0,
        });
        $each!(RegisterNodeResponse {
            session_id: "0190b6a5-0000-7000-8000-000000000002".to_owned(),
            protocol: PROTOCOL_VERSION,
            oldest_protocol: OLDEST_PROTOCOL,
            heartbeat_interval_ms: 5000,
            offline_after_ms: 30_000,
            leader: Some(point()),
            verdicts: vec![AttemptVerdict { attempt: Some(attempt()), verdict: Verdict::Keep.into() }],
            node_id: "0190b6a5-0000-7000-8000-000000000003".to_owned(),
            output_window_bytes: 1 << 20,
            endpoints: vec!["mesh.example:7443".to_owned()],
            lease_ms: 9000,
        });
        $each!(HeartbeatRequest {
            session_id: "0190b6a5-0000-7000-8000-000000000002".to_owned(),
            load_permille: 250,
            free_memory_bytes: 1 << 30,
            free_disk_bytes: 1 << 40,
            running: 3,
            queued: 2,
            echo_token: 77,
            echo_held_us: 1234,
        });
        $each!(HeartbeatResponse { token: 78, leader: Some(point()), ..Default::default() });
        $each!(AssignTaskResponse {
            assignments: vec![assignment()],
            cancels: vec![CancelAttempt { attempt: Some(attempt()), reason: "not needed".to_owned() }],
            verdicts: vec![AttemptVerdict { attempt: Some(attempt()), verdict: Verdict::Kill.into() }],
            withdrawals: vec![attempt()],
            register_again: true,
            leader: Some(point()),
        });
        $each!(TaskResultRequest {
            session_id: "0190b6a5-0000-7000-8000-000000000002".to_owned(),
            events: vec![
                event(attempt_event::Event::Started(Started {
                    at_ms: 1_762_000_000_000,
                    sandbox: SandboxLevel::Strict.into(),
                    limits: Limits::Cgroup.into(),
                })),
                event(attempt_event::Event::Progress(Progress { percent: 40, message: "on".to_owned() })),
                event(attempt_event::Event::Withdrawn(Withdrawn {})),
                event(attempt_event::Event::Ended(Ended {
                    cause: Cause::Exit.into(),
                    exit_code: 3,
                    signal: 9,
                    message: "exited with status 3".to_owned(),
                    started_at_ms: 1_762_000_000_000,
                    ended_at_ms: 1_762_000_001_000,
                    outputs: vec![file()],
                    output_length: 20,
                    output: Bytes::from_static(b"spool"),
                    run_ms: 1000,
                    cpu_ms: 900,
                    max_rss_bytes: 1 << 20,
                })),
            ],
        });
        $each!(TaskResultResponse {
            acks: vec![AttemptAck { attempt: Some(attempt()), kind: AckKind::Stale.into(), ended: true }],
        });
        $each!(TaskOutputRequest {
            session_id: "0190b6a5-0000-7000-8000-000000000002".to_owned(),
            chunks: vec![OutputChunk {
                attempt: Some(attempt()),
                position: 7,
                data: Bytes::from_static(b"abc")
            }],
        });
        $each!(TaskOutputResponse {
            acks: vec![OutputAck { attempt: Some(attempt()), durable: 10, discard: true }],
        });
        $each!(SubmitJobRequest { spec: Some(job()), idempotency_key: "key".to_owned() });
        $each!(SubmitJobResponse { number: 12, uuid: "u".to_owned(), existed: true });
        $each!(Job {
            number: 12,
            uuid: "0190b6a5-0000-7000-8000-00000000000c".to_owned(),
            name: "thumbnails".to_owned(),
            owner: "ann".to_owned(),
            state: JobState::Running.into(),
            priority: 5,
            on_failure: OnFailure::Continue.into(),
            created_at_ms: 1,
            started_at_ms: 2,
            finished_at_ms: 3,
            counts: Some(counts()),
            tasks: vec![TaskSummary {
                name: "resize".to_owned(),
                total: 36,
                array: true,
                counts: Some(counts()),
                needs: vec!["fetch".to_owned()],
            }],
            reason: "because".to_owned(),
            progress: 0.5,
            run_ms: 4,
        });
        $each!(ListTasksRequest {
            job: "12".to_owned(),
            page: Some(Page { limit: 10, after: "0.7".to_owned() }),
            states: vec![TaskState::Failed.into()],
            task: "resize".to_owned(),
            index: Some(7),
        });
        $each!(ListTasksResponse { tasks: vec![task_info()], next: "0.8".to_owned() });
        $each!(RedriveRequest {
            job: "12".to_owned(),
            targets: vec![RedriveTarget { task: "resize".to_owned(), index: Some(7) }],
            idempotency_key: "key".to_owned(),
        });
        $each!(StreamLogsResponse {
            chunks: vec![LogChunk {
                task: "resize".to_owned(),
                index: 7,
                array: true,
                attempt: 2,
                stream: OutputStream::Stderr.into(),
                offset: 9,
                time_ms: 10,
                data: Bytes::from_static(b"abc"),
                missing: true,
                ..Default::default()
            }],
        });
    };
}

fn attempt() -> AttemptKey {
    AttemptKey { task: Some(TaskKey { job: 12, task: 1, index: 7 }), number: 2 }
}

fn point() -> CommitPoint {
    CommitPoint {
        incarnation: "0190b6a5-0000-7000-8000-00000000000a".to_owned(),
        epoch: 3,
        seq: 99,
        proof: vec![0xa5; 32],
    }
}

fn file() -> FileEntry {
    FileEntry { path: "out/a".to_owned(), digest: vec![7; 32], size: 5, executable: true, directory: true }
}

fn event(event: attempt_event::Event) -> AttemptEvent {
    AttemptEvent { attempt: Some(attempt()), event: Some(event) }
}

fn counts() -> Counts {
    Counts {
        blocked: 1,
        queued: 2,
        assigned: 3,
        running: 4,
        retrying: 5,
        completed: 6,
        failed: 7,
        cancelled: 8,
    }
}

fn facts() -> NodeFacts {
    NodeFacts {
        name: "attic".to_owned(),
        version: "0.1.0".to_owned(),
        slots: 4,
        cpu_millis: 4000,
        memory_bytes: 8 << 30,
        disk_bytes: 100 << 30,
        resources: [("license".to_owned(), 2)].into(),
        tags: [("site".to_owned(), "attic".to_owned())].into(),
        capabilities: vec!["scanner".to_owned()],
        os: "linux".to_owned(),
        arch: "x86_64".to_owned(),
        gpus: vec![Gpu { name: "g".to_owned(), uuid: "u".to_owned(), memory_bytes: 1 }],
        sandbox: Some(Sandbox {
            strongest: SandboxLevel::Strict.into(),
            weakest: SandboxLevel::None.into(),
            limits: "cgroup".to_owned(),
            layers: vec![SandboxLayer { name: "seccomp".to_owned(), present: true, remedy: "r".to_owned() }],
            host_network: true,
            mounts: vec![mount()],
        }),
        cores: 4,
        total_memory_bytes: 16 << 30,
        kernel: "6.1".to_owned(),
    }
}

fn mount() -> Mount {
    Mount { name: "data".to_owned(), to: "/data".to_owned(), read_only: true }
}

fn resources() -> Resources {
    Resources {
        cpu_millis: 500,
        memory_bytes: 1 << 20,
        disk_bytes: 1 << 21,
        named: [("license".to_owned(), 1)].into(),
    }
}

fn assignment() -> Assignment {
    Assignment {
        attempt: Some(attempt()),
        job_name: "thumbnails".to_owned(),
        task_name: "resize".to_owned(),
        array: true,
        item: "a.jpg".to_owned(),
        command: vec!["convert".to_owned(), "a.jpg".to_owned()],
        script: "true".to_owned(),
        env: [("LEVEL".to_owned(), "7".to_owned())].into(),
        resources: Some(resources()),
        timeout_ms: 1000,
        grace_ms: 2000,
        sandbox: SandboxLevel::Basic.into(),
        network: Network::Host.into(),
        inputs: vec![file()],
        inputs_listed: true,
        outputs: vec!["out/".to_owned()],
        traceparent: "00-1-2-03".to_owned(),
        on_disconnect: OnDisconnect::Kill.into(),
        mounts: vec![mount()],
    }
}

fn job() -> JobSpec {
    JobSpec {
        name: "thumbnails".to_owned(),
        priority: 7,
        on_failure: OnFailure::Continue.into(),
        params: [("size".to_owned(), "256".to_owned())].into(),
        tasks: vec![TaskSpec {
            name: "resize".to_owned(),
            command: vec!["convert".to_owned()],
            script: "true".to_owned(),
            array: Some(ArraySpec {
                kind: Some(array_spec::Kind::Range(Range { first: 1, last: 9, step: 2 })),
            }),
            needs: vec![Need { task: "fetch".to_owned(), same_index: true }],
            inputs: vec![file()],
            input_templates: vec![InputTemplate { elements: vec![FileList { files: vec![file()] }] }],
            outputs: vec!["out/".to_owned()],
            env: [("LEVEL".to_owned(), "7".to_owned())].into(),
            resources: Some(resources()),
            r#where: Some(Where {
                tags: [("site".to_owned(), "attic".to_owned())].into(),
                capabilities: vec!["scanner".to_owned()],
                os: "linux".to_owned(),
                arch: "x86_64".to_owned(),
                node: "attic".to_owned(),
                limits: "cgroup".to_owned(),
            }),
            timeout_ms: 1000,
            grace_ms: 2000,
            retry: Some(Retry {
                attempts: 3,
                on: vec![Cause::Exit.into(), Cause::Oom.into()],
                backoff_ms: 100,
                max_backoff_ms: 1000,
                max_lost: 5,
            }),
            sandbox: SandboxLevel::Strict.into(),
            network: Network::Host.into(),
            on_disconnect: OnDisconnect::Kill.into(),
            mounts: vec![mount()],
        }],
        traceparent: "00-1-2-03".to_owned(),
    }
}

fn task_info() -> TaskInfo {
    TaskInfo {
        key: Some(TaskKey { job: 12, task: 1, index: 7 }),
        name: "resize".to_owned(),
        array: true,
        item: "a.jpg".to_owned(),
        state: TaskState::Failed.into(),
        attempt: 2,
        node: "attic".to_owned(),
        cause: Cause::Signal.into(),
        exit_code: Some(3),
        signal: Some(9),
        progress: Some(40),
        progress_message: "on".to_owned(),
        started_at_ms: 1,
        finished_at_ms: 2,
        message: "killed".to_owned(),
        queued_at_ms: 3,
        sandbox: SandboxLevel::Strict.into(),
        limits: Limits::Cgroup.into(),
    }
}

fn golden(version: u32) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden")).join(format!("v{version}"))
}

/// Decodes, and encodes again: what is not the same has lost something.
fn survives<M: Message + Default>(bytes: &[u8]) -> Result<(), String> {
    let message = M::decode(bytes).map_err(|error| error.to_string())?;
    if message.encode_to_vec() == bytes { Ok(()) } else { Err("something of it was lost".to_owned()) }
}

#[test]
fn what_every_spoken_version_says_is_understood_whole() {
    for version in OLDEST_PROTOCOL..=PROTOCOL_VERSION {
        let mut known = Vec::new();
        macro_rules! check {
            ($kind:ident { $($rest:tt)* }) => {
                let name = concat!(stringify!($kind), ".bin");
                known.push(name.to_owned());
                // A message that came with a later version has no file of an older one.
                if let Ok(bytes) = fs::read(golden(version).join(name)) {
                    survives::<$kind>(&bytes).unwrap_or_else(|what| panic!("v{version}/{name}: {what}"));
                }
            };
        }
        examples!(check);
        let files = fs::read_dir(golden(version)).unwrap_or_else(|error| panic!("v{version}: {error}"));
        for file in files {
            let name = file.unwrap().file_name().into_string().unwrap();
            assert!(known.contains(&name), "v{version}/{name}: nobody says this any more");
        }
    }
}

#[test]
fn todays_version_says_what_is_recorded() {
    let write = std::env::var_os("MESH_GOLDEN").is_some();
    macro_rules! check {
        ($kind:ident { $($rest:tt)* }) => {
            let path = golden(PROTOCOL_VERSION).join(concat!(stringify!($kind), ".bin"));
            let bytes = $kind { $($rest)* }.encode_to_vec();
            if write {
                fs::create_dir_all(golden(PROTOCOL_VERSION)).unwrap();
                fs::write(&path, &bytes).unwrap();
            }
            let recorded = fs::read(&path).unwrap_or_default();
            assert!(recorded == bytes, "{} is not what is said now: see golden/README.md", path.display());
        };
    }
    examples!(check);
}

#[test]
fn what_a_later_version_adds_is_passed_over() {
    // Field 1000, a text: newer than anything.
    let added = [0xc2, 0x3e, 0x03, b'n', b'e', b'w'];
    macro_rules! check {
        ($kind:ident { $($rest:tt)* }) => {
            let message = $kind { $($rest)* };
            let bytes = [&message.encode_to_vec()[..], &added].concat();
            assert_eq!($kind::decode(&bytes[..]).unwrap(), message);
        };
    }
    examples!(check);
}
