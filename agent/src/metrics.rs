//! The agent's metrics. Labels are bounded: causes, nothing that names a job.

use mesh_proto::state::Named as _;
use mesh_proto::v1::Cause;
use prometheus::{Encoder as _, IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder};

/// Every metric, registered.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    running: IntGauge,
    waiting: IntGauge,
    connected: IntGauge,
    assigned: IntCounter,
    ended: IntCounterVec,
}

impl Metrics {
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let running = IntGauge::new("mesh_agent_attempts_running", "Attempts that hold a slot")?;
        let waiting = IntGauge::new("mesh_agent_attempts_waiting", "Attempts that wait for a slot")?;
        let connected = IntGauge::new("mesh_agent_connected", "1 while registered with the coordinator")?;
        let assigned = IntCounter::new("mesh_agent_assigned_total", "Assignments received")?;
        let opts = Opts::new("mesh_agent_attempts_ended_total", "Attempts that ended here, by cause");
        let ended = IntCounterVec::new(opts, &["cause"])?;
        for cause in Cause::ALL {
            ended.with_label_values(&[cause.lower()]).inc_by(0);
        }
        let opts = Opts::new("mesh_agent_build_info", "1, with the version as a label");
        let build = prometheus::IntGaugeVec::new(opts, &["version"])?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        for gauge in [&running, &waiting, &connected] {
            registry.register(Box::new(gauge.clone()))?;
        }
        registry.register(Box::new(assigned.clone()))?;
        registry.register(Box::new(ended.clone()))?;
        registry.register(Box::new(build))?;
        Ok(Self { registry, running, waiting, connected, assigned, ended })
    }

    pub fn attempts(&self, running: usize, waiting: usize) {
        self.running.set(running as i64);
        self.waiting.set(waiting as i64);
    }

    pub fn connected(&self, connected: bool) {
        self.connected.set(connected.into());
    }

    pub fn is_connected(&self) -> bool {
        self.connected.get() == 1
    }

    pub fn assigned(&self, count: usize) {
        self.assigned.inc_by(count as u64);
    }

    pub fn ended(&self, cause: Cause) {
        self.ended.with_label_values(&[cause.lower()]).inc();
    }

    /// In Prometheus's text form.
    pub fn text(&self) -> String {
        let mut bytes = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut bytes) {
            tracing::error!(%error, "cannot encode the metrics");
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }
}
