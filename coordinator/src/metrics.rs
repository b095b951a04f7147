//! Every metric of the coordinator, with typed methods so that no caller can invent a label.
//! No job's id ever is a label; labels by node are bounded.
//!
//! May enter: names, help texts, buckets, and the methods that move them.

use std::{collections::HashSet, sync::Mutex, time::Duration};

use mesh_proto::{
    state::Named,
    v1::{Cause, JobState, NodeState, TaskState},
};
use prometheus::{
    Encoder as _, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, TextEncoder,
};

/// Nodes with a label of their own; further ones share `other`.
const MAX_NODES: usize = 1000;
/// The label of what is past a bound or outside a table.
const OTHER: &str = "other";

/// Seconds, for what people wait for: a task in the queue, a process, a job.
const LONG: [f64; 16] = [
    0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0, 43_200.0,
    86_400.0,
];
/// Seconds, for what the coordinator does itself: a commit, an RPC.
const SHORT: [f64; 15] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0];
/// Seconds, for one round of the scheduler.
const ROUND: [f64; 12] =
    [0.000_005, 0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.005, 0.025, 0.1, 0.5];
/// Events in one commit.
const BATCH: [f64; 14] =
    [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0];

/// What the scheduler decided for a group of like tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// A task was given to a node.
    Placed,
    /// Nodes would suit, none has room now.
    Full,
    /// No node of the mesh suits.
    Unsuitable,
}

impl Decision {
    const ALL: [Self; 3] = [Self::Placed, Self::Full, Self::Unsuitable];

    fn label(self) -> &'static str {
        match self {
            Self::Placed => "placed",
            Self::Full => "full",
            Self::Unsuitable => "unsuitable",
        }
    }
}

/// All metrics of one coordinator, in a registry of their own.
pub struct Metrics {
    registry: Registry,
    nodes: IntGaugeVec,
    jobs: IntGaugeVec,
    tasks: IntGaugeVec,
    tasks_finished: IntCounterVec,
    task_retries: IntCounterVec,
    task_queue: Histogram,
    task_run: Histogram,
    job: Histogram,
    decisions: IntCounterVec,
    scheduler: Histogram,
    tasks_assigned: IntCounterVec,
    node_rtt: GaugeVec,
    commit: Histogram,
    commit_batch: Histogram,
    leader: IntGauge,
    halted: IntGauge,
    grpc_requests: IntCounterVec,
    grpc_seconds: HistogramVec,
    node_labels: Mutex<HashSet<String>>,
}

impl Metrics {
    /// The metrics of a coordinator of this version, all at zero.
    pub fn new(version: &str) -> prometheus::Result<Self> {
        let registry = Registry::new();
        let build: IntGaugeVec = gauges(&registry, "build_info", "Always 1; what runs", &["version"])?;
        build.with_label_values(&[version]).set(1);
        let metrics = Self {
            nodes: gauges(&registry, "nodes", "Nodes by state", &["state"])?,
            jobs: gauges(&registry, "jobs", "Jobs by state, those still kept", &["state"])?,
            tasks: gauges(&registry, "tasks", "Tasks of unfinished jobs by state", &["state"])?,
            tasks_finished: counters(
                &registry,
                "tasks_finished_total",
                "Attempts that ended, by cause",
                &["cause"],
            )?,
            task_retries: counters(
                &registry,
                "task_retries_total",
                "Attempts that are made again, by the cause of the end before",
                &["cause"],
            )?,
            task_queue: seconds(&registry, "task_queue_seconds", "From ready to the process start", &LONG)?,
            task_run: seconds(&registry, "task_run_seconds", "From the process start to its end", &LONG)?,
            job: seconds(
                &registry,
                "job_seconds",
                "From the submit to the terminal state; at each end of a job that was redriven",
                &LONG,
            )?,
            decisions: counters(
                &registry,
                "scheduler_decisions_total",
                "Decisions of the scheduler, one a group of like tasks and round",
                &["outcome"],
            )?,
            scheduler: seconds(&registry, "scheduler_seconds", "One round of the scheduler", &ROUND)?,
            tasks_assigned: counters(
                &registry,
                "tasks_assigned_total",
                "Attempts given to a node; past the bound on nodes: other",
                &["node"],
            )?,
            node_rtt: {
                let opts = opts("node_rtt_seconds", "Smoothed round trip to a node");
                register(&registry, GaugeVec::new(opts, &["node"])?)?
            },
            commit: seconds(&registry, "commit_seconds", "One commit, begin to answer", &SHORT)?,
            commit_batch: seconds(&registry, "commit_batch_size", "Events in one commit", &BATCH)?,
            halted: register(
                &registry,
                IntGauge::with_opts(opts(
                    "halted",
                    "1 while nothing is dispatched: the database went back in time",
                ))?,
            )?,
            leader: register(&registry, IntGauge::with_opts(opts("leader", "1 while this one leads"))?)?,
            grpc_requests: counters(
                &registry,
                "grpc_requests_total",
                "RPCs that ended, by the gRPC code that the client saw",
                &["service", "method", "code"],
            )?,
            grpc_seconds: {
                let opts = histogram_opts("grpc_seconds", "RPCs from head to last byte", &SHORT);
                register(&registry, HistogramVec::new(opts, &["service", "method"])?)?
            },
            node_labels: Mutex::default(),
            registry,
        };
        metrics.export_zeros();
        Ok(metrics)
    }

    /// Without this a dashboard could not tell "none" from "not measured".
    fn export_zeros(&self) {
        for state in NodeState::ALL {
            self.nodes.with_label_values(&[state.lower()]);
        }
        for state in JobState::ALL {
            self.jobs.with_label_values(&[state.lower()]);
        }
        for state in TaskState::ALL {
            self.tasks.with_label_values(&[state.lower()]);
        }
        for cause in Cause::ALL {
            self.tasks_finished.with_label_values(&[cause.lower()]);
            self.task_retries.with_label_values(&[cause.lower()]);
        }
        for decision in Decision::ALL {
            self.decisions.with_label_values(&[decision.label()]);
        }
    }

    pub fn set_nodes(&self, state: NodeState, count: u64) {
        self.nodes.with_label_values(&[state.lower()]).set(count as i64);
    }

    pub fn set_jobs(&self, state: JobState, count: u64) {
        self.jobs.with_label_values(&[state.lower()]).set(count as i64);
    }

    pub fn set_tasks(&self, state: TaskState, count: u64) {
        self.tasks.with_label_values(&[state.lower()]).set(count as i64);
    }

    /// An attempt ended; `run` is how long its process ran, if it ever did.
    pub fn attempt_ended(&self, cause: Cause, run: Option<Duration>) {
        self.tasks_finished.with_label_values(&[cause.lower()]).inc();
        if let Some(run) = run {
            self.task_run.observe(run.as_secs_f64());
        }
    }

    /// A task goes back to the queue because its attempt ended this way.
    pub fn task_retried(&self, cause: Cause) {
        self.task_retries.with_label_values(&[cause.lower()]).inc();
    }

    /// An attempt's process started, this long after its task was ready.
    pub fn task_started(&self, queued: Duration) {
        self.task_queue.observe(queued.as_secs_f64());
    }

    /// A job became terminal, this long after its submit.
    pub fn job_finished(&self, took: Duration) {
        self.job.observe(took.as_secs_f64());
    }

    pub fn decided(&self, decision: Decision, count: u64) {
        self.decisions.with_label_values(&[decision.label()]).inc_by(count);
    }

    pub fn scheduled(&self, took: Duration) {
        self.scheduler.observe(took.as_secs_f64());
    }

    /// `count` attempts were given to the node of this name.
    pub fn assigned(&self, node: &str, count: u64) {
        let label = if self.has_label(node) { node } else { OTHER };
        self.tasks_assigned.with_label_values(&[label]).inc_by(count);
    }

    /// The smoothed round trip to the node of this name. Nodes past the bound are left out.
    pub fn set_rtt(&self, node: &str, rtt: Duration) {
        if self.has_label(node) {
            self.node_rtt.with_label_values(&[node]).set(rtt.as_secs_f64());
        }
    }

    /// The node is offline or gone: its round trip means nothing any more.
    pub fn forget_rtt(&self, node: &str) {
        // An error here means that there was none.
        let _ = self.node_rtt.remove_label_values(&[node]);
    }

    fn has_label(&self, node: &str) -> bool {
        let Ok(mut labels) = self.node_labels.lock() else { return false };
        labels.contains(node) || (labels.len() < MAX_NODES && labels.insert(node.to_owned()))
    }

    /// A commit of `events` events was answered.
    pub fn committed(&self, events: usize, took: Duration) {
        self.commit.observe(took.as_secs_f64());
        self.commit_batch.observe(events as f64);
    }

    pub fn set_leader(&self, leads: bool) {
        self.leader.set(i64::from(leads));
    }

    pub fn set_halted(&self, halts: bool) {
        self.halted.set(i64::from(halts));
    }

    /// An RPC ended. Service and method come from the table of RPCs; none of it: unknown path.
    pub fn rpc_ended(&self, rpc: Option<(&'static str, &'static str)>, code: tonic::Code, took: Duration) {
        let (service, method) = rpc.unwrap_or((OTHER, OTHER));
        self.grpc_requests.with_label_values(&[service, method, code_label(code)]).inc();
        self.grpc_seconds.with_label_values(&[service, method]).observe(took.as_secs_f64());
    }

    /// Every metric in Prometheus' text format.
    pub fn encode(&self) -> prometheus::Result<String> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        String::from_utf8(text).map_err(|error| prometheus::Error::Msg(error.to_string()))
    }
}

/// The content type of [`Metrics::encode`].
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

fn code_label(code: tonic::Code) -> &'static str {
    match code {
        tonic::Code::Ok => "ok",
        tonic::Code::Cancelled => "cancelled",
        tonic::Code::Unknown => "unknown",
        tonic::Code::InvalidArgument => "invalid_argument",
        tonic::Code::DeadlineExceeded => "deadline_exceeded",
        tonic::Code::NotFound => "not_found",
        tonic::Code::AlreadyExists => "already_exists",
        tonic::Code::PermissionDenied => "permission_denied",
        tonic::Code::ResourceExhausted => "resource_exhausted",
        tonic::Code::FailedPrecondition => "failed_precondition",
        tonic::Code::Aborted => "aborted",
        tonic::Code::OutOfRange => "out_of_range",
        tonic::Code::Unimplemented => "unimplemented",
        tonic::Code::Internal => "internal",
        tonic::Code::Unavailable => "unavailable",
        tonic::Code::DataLoss => "data_loss",
        tonic::Code::Unauthenticated => "unauthenticated",
    }
}

fn opts(name: &str, help: &str) -> Opts {
    Opts::new(name, help).namespace("mesh")
}

fn histogram_opts(name: &str, help: &str, buckets: &[f64]) -> HistogramOpts {
    HistogramOpts::new(name, help).namespace("mesh").buckets(buckets.to_vec())
}

fn register<C: prometheus::core::Collector + Clone + 'static>(
    registry: &Registry,
    collector: C,
) -> prometheus::Result<C> {
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}

fn gauges(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntGaugeVec> {
    register(registry, IntGaugeVec::new(opts(name, help), labels)?)
}

fn counters(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> prometheus::Result<IntCounterVec> {
    register(registry, IntCounterVec::new(opts(name, help), labels)?)
}

fn seconds(registry: &Registry, name: &str, help: &str, buckets: &[f64]) -> prometheus::Result<Histogram> {
    register(registry, Histogram::with_opts(histogram_opts(name, help, buckets))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dashboard_finds_every_state_and_cause_at_zero() {
        let text = Metrics::new("1.2.3").unwrap().encode().unwrap();
        for line in [
            "mesh_nodes{state=\"offline\"} 0",
            "mesh_jobs{state=\"partially_completed\"} 0",
            "mesh_tasks{state=\"retrying\"} 0",
            "mesh_tasks_finished_total{cause=\"oom\"} 0",
            "mesh_task_retries_total{cause=\"lost\"} 0",
            "mesh_scheduler_decisions_total{outcome=\"unsuitable\"} 0",
            "mesh_task_queue_seconds_count 0",
            "mesh_task_run_seconds_count 0",
            "mesh_job_seconds_count 0",
            "mesh_scheduler_seconds_count 0",
            "mesh_commit_seconds_count 0",
            "mesh_commit_batch_size_count 0",
            "mesh_leader 0",
            "mesh_halted 0",
            "mesh_build_info{version=\"1.2.3\"} 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line:?} is missing in\n{text}");
        }
    }

    #[test]
    fn what_happened_shows() {
        let metrics = Metrics::new("0").unwrap();
        metrics.set_jobs(JobState::Running, 3);
        metrics.attempt_ended(Cause::Exit, Some(Duration::from_millis(1500)));
        metrics.attempt_ended(Cause::Lost, None);
        metrics.assigned("alpha", 4);
        metrics.set_rtt("alpha", Duration::from_millis(2));
        metrics.committed(100, Duration::from_micros(300));
        metrics.rpc_ended(Some(("mesh.v1.Jobs", "GetJob")), tonic::Code::NotFound, Duration::from_millis(1));
        let text = metrics.encode().unwrap();
        for line in [
            "mesh_jobs{state=\"running\"} 3",
            "mesh_tasks_finished_total{cause=\"exit\"} 1",
            "mesh_task_run_seconds_sum 1.5",
            "mesh_task_run_seconds_count 1",
            "mesh_tasks_assigned_total{node=\"alpha\"} 4",
            "mesh_node_rtt_seconds{node=\"alpha\"} 0.002",
            "mesh_commit_batch_size_sum 100",
            "mesh_grpc_requests_total{code=\"not_found\",method=\"GetJob\",service=\"mesh.v1.Jobs\"} 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line:?} is missing in\n{text}");
        }
        metrics.forget_rtt("alpha");
        assert!(!metrics.encode().unwrap().contains("mesh_node_rtt_seconds{"));
    }

    #[test]
    fn a_flood_of_nodes_cannot_flood_prometheus() {
        let metrics = Metrics::new("0").unwrap();
        for node in 0..MAX_NODES + 500 {
            metrics.assigned(&format!("n{node}"), 1);
            metrics.set_rtt(&format!("n{node}"), Duration::from_millis(1));
        }
        let text = metrics.encode().unwrap();
        let of = |name: &str| text.lines().filter(|line| line.starts_with(name)).count();
        assert_eq!(of("mesh_tasks_assigned_total{"), MAX_NODES + 1);
        assert_eq!(of("mesh_node_rtt_seconds{"), MAX_NODES);
        assert!(text.contains("mesh_tasks_assigned_total{node=\"other\"} 500"));
    }
}
