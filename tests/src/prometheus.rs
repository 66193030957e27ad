//! Prometheus as it is installed on people's clusters: it scrapes the agent on its node once a second, and answers the
//! queries of dashboard and alert rules.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::poll::{eventually, patience};
use crate::process::{Place, Running};
use crate::tools;
use crate::topology::Topology;

const PORT: u16 = 9090;

/// A running Prometheus on the node. It ends with this value.
#[derive(Debug)]
pub struct Prometheus {
    _running: Running,
    place: Place,
}

impl Prometheus {
    /// Starts it with a job `hnp` that scrapes `admin` of the node's loopback, and with `rules`, which are evaluated
    /// once a second as well.
    ///
    /// # Panics
    /// When Prometheus is missing or refuses its configuration or the rules.
    #[track_caller]
    pub fn start(topology: &Topology, admin: u16, rules: &Path) -> Self {
        let dir = topology.path("prometheus");
        fs::create_dir(&dir).expect("the world's directory is ours");
        let conf = format!(
            "global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}\n\
             rule_files: ['{}']\n\
             scrape_configs: [{{job_name: hnp, static_configs: [{{targets: ['127.0.0.1:{admin}']}}]}}]\n",
            rules.display()
        );
        let path = dir.join("prometheus.yml");
        fs::write(&path, conf).expect("the world's directory is ours");
        let place = topology.node();
        let mut running = place
            .command(tools::need("prometheus"))
            .arg(format!("--config.file={}", path.display()))
            .arg(format!("--storage.tsdb.path={}", dir.join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{PORT}"))
            .spawn();
        eventually(Duration::from_secs(30), "Prometheus is ready", || {
            assert!(running.is_alive(), "Prometheus ended: {}", running.stderr());
            get(&place, "/-/ready").is_ok_and(|(head, _)| head.starts_with("HTTP/1.0 200 "))
        });
        Self { _running: running, place }
    }

    /// What a query gives now: one value for each series, those that are no number (a division by zero) left out.
    ///
    /// # Panics
    /// When Prometheus does not understand the query.
    #[track_caller]
    pub fn query(&self, expression: &str) -> Vec<f64> {
        let answer = self.ask(&format!("/api/v1/query?query={}", percent_encoded(expression)));
        assert_eq!(answer["status"], "success", "{expression}: {answer}");
        let series = answer["data"]["result"].as_array().cloned().unwrap_or_default();
        let number =
            |one: &Value| one["value"][1].as_str()?.parse().ok().filter(|value: &f64| value.is_finite());
        series.iter().filter_map(number).collect()
    }

    /// The rules as Prometheus has them, with their health and their state.
    ///
    /// # Panics
    /// When it does not answer.
    #[track_caller]
    pub fn rules(&self) -> Vec<Value> {
        let answer = self.ask("/api/v1/rules");
        let groups = answer["data"]["groups"].as_array().cloned().unwrap_or_default();
        groups.iter().flat_map(|group| group["rules"].as_array().cloned().unwrap_or_default()).collect()
    }

    #[track_caller]
    fn ask(&self, path: &str) -> Value {
        let (head, body) = get(&self.place, path).unwrap_or_else(|error| panic!("{path}: {error}"));
        serde_json::from_str(&body).unwrap_or_else(|error| panic!("{path}: {error}: {head}: {body}"))
    }
}

/// Head and body of the answer. In HTTP/1.0 it comes in one piece.
fn get(place: &Place, path: &str) -> std::io::Result<(String, String)> {
    let text = place.netns().run(|| -> std::io::Result<String> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, PORT))?;
        stream.set_read_timeout(Some(patience(Duration::from_secs(10))))?;
        write!(stream, "GET {path} HTTP/1.0\r\nhost: prometheus\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    })?;
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    Ok((head.to_owned(), body.to_owned()))
}

fn percent_encoded(text: &str) -> String {
    let one = |byte: u8| {
        if byte.is_ascii_alphanumeric() { char::from(byte).to_string() } else { format!("%{byte:02X}") }
    };
    text.bytes().map(one).collect()
}
