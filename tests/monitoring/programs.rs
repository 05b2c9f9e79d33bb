//! Prometheus, promtool and the strict parser that `tests/fetch-monitoring.sh` brought, or why they are absent.
//! Never fetches or installs them. Invariant: what a test starts here is gone when its value is dropped.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::support::place::as_server;
use crate::support::{Output, TempDir, free_port, have, run, wait_for};

fn folder() -> PathBuf {
    let named = std::env::var_os("WALMGR_TEST_MONITORING");
    named.map_or("/var/tmp/walmgr-test-monitoring".into(), PathBuf::from)
}

/// One of the programs.
pub(super) fn program(name: &str) -> Result<PathBuf, String> {
    let path = folder().join("bin").join(name);
    if path.is_file() {
        return Ok(path);
    }
    Err(format!(
        "{name} is not in {}: sh tests/fetch-monitoring.sh brings it",
        folder().display()
    ))
}

/// `promtool` with these words, in this directory; what it said.
pub(super) fn promtool(words: &[&str], directory: &Path) -> Result<String, String> {
    let mut promtool = Command::new(program("promtool")?);
    run(promtool.args(words).current_dir(directory))
}

const START_LIMIT: Duration = Duration::from_secs(60);

/// What a Prometheus scrapes, each under the name of its job.
pub(super) struct Scraped {
    pub job: &'static str,
    pub address: SocketAddr,
}

/// A Prometheus with the rules of monitoring/, which scrapes each second.
pub(super) struct Prometheus {
    address: SocketAddr,
    child: Child,
    home: TempDir,
}

impl Prometheus {
    pub(super) fn start(scraped: &[Scraped], rules: &Path) -> Prometheus {
        let home = TempDir::new();
        let mut config = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: ['{}']\nscrape_configs:\n",
            rules.display()
        );
        for Scraped { job, address } in scraped {
            config.push_str(&format!(
                "  - {{job_name: {job}, static_configs: [{{targets: ['{address}']}}]}}\n"
            ));
        }
        let config = home.write("prometheus.yml", config);
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let log = File::create(home.join("log")).unwrap();
        let mut command = Command::new(program("prometheus").unwrap());
        command
            .arg(format!("--config.file={}", config.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                home.join("data").display()
            ))
            .arg(format!("--web.listen-address={address}"))
            .arg("--log.level=warn")
            .current_dir(home.path())
            .stdout(Stdio::null())
            .stderr(log);
        let child = as_server(&mut command).spawn().unwrap();
        let prometheus = Prometheus {
            address,
            child,
            home,
        };
        wait_for("Prometheus to be ready", START_LIMIT, || {
            let answer = get(address, "/-/ready", "text/plain").ok()?;
            answer.head.contains(" 200 ").then_some(())
        });
        prometheus
    }

    /// The data of an answer of its API; the error is what it said.
    pub(super) fn api(&self, path: &str) -> Result<Value, String> {
        let answer = get(self.address, path, "application/json").unwrap();
        let parsed: Value = serde_json::from_str(&answer.content)
            .unwrap_or_else(|error| panic!("{path}: {error}: {}{}", answer.head, answer.content));
        match parsed["status"].as_str() {
            Some("success") => Ok(parsed["data"].clone()),
            _ => Err(format!("{path}: {}", answer.content)),
        }
    }

    /// The series that an expression has now.
    pub(super) fn query(&self, expression: &str) -> Result<Vec<Value>, String> {
        let data = self.api(&format!("/api/v1/query?query={}", escaped(expression)))?;
        Ok(data["result"].as_array().cloned().unwrap_or_default())
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.home.join("log"));
            println!("Prometheus said:\n{}", log.unwrap_or_default());
        }
    }
}

/// `node_exporter` with nothing but its textfiles of this directory.
pub(super) struct NodeExporter {
    pub address: SocketAddr,
    child: Child,
}

impl NodeExporter {
    pub(super) fn start(textfiles: &Path) -> NodeExporter {
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let mut command = Command::new(program("prometheus-node-exporter").unwrap());
        command
            .args(["--collector.disable-defaults", "--collector.textfile"])
            .arg(format!(
                "--collector.textfile.directory={}",
                textfiles.display()
            ))
            .arg(format!("--web.listen-address={address}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = as_server(&mut command).spawn().unwrap();
        NodeExporter { address, child }
    }
}

impl Drop for NodeExporter {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a server answered.
pub(super) struct Answer {
    pub head: String,
    pub content: String,
}

/// Asks for a page in the old way, so that it ends with the connection.
pub(super) fn get(address: SocketAddr, path: &str, accept: &str) -> std::io::Result<Answer> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: walmgr\r\nAccept: {accept}\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, content) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    Ok(Answer {
        head: head.to_owned(),
        content: content.to_owned(),
    })
}

/// A query as an address may have it.
fn escaped(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    text.bytes()
        .map(|byte| match plain(byte) {
            true => char::from(byte).to_string(),
            false => format!("%{byte:02X}"),
        })
        .collect()
}

/// What the strict parsers of PyPI's prometheus-client say to a page.
pub(super) fn parse_strictly(page: &str, is_openmetrics: bool) -> Result<String, String> {
    let module = match is_openmetrics {
        true => "prometheus_client.openmetrics.parser",
        false => "prometheus_client.parser",
    };
    let code = format!(
        "import sys\nfrom {module} import text_string_to_metric_families as parse\n\
         found = list(parse(sys.stdin.read()))\nprint(len(found), sum(len(f.samples) for f in found))"
    );
    let mut child = Command::new("python3")
        .args(["-c", &code])
        .env("PYTHONPATH", python()?)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("python3: {error}"))?;
    let mut input = child.stdin.take().unwrap();
    input.write_all(page.as_bytes()).unwrap();
    drop(input);
    let output: Output = child.wait_with_output().unwrap().into();
    match output.code {
        Some(0) => Ok(output.stdout.trim().to_owned()),
        _ => Err(output.stderr),
    }
}

/// Where prometheus-client is.
pub(super) fn python() -> Result<PathBuf, String> {
    let path = folder().join("python");
    if path.join("prometheus_client").is_dir() && have("python3") {
        return Ok(path);
    }
    Err(format!(
        "python3 or prometheus-client is not in {}: sh tests/fetch-monitoring.sh brings it",
        folder().display()
    ))
}

/// What `promtool check metrics` has against a page: nothing, if it is well.
pub(super) fn lint(page: &str) -> String {
    let mut child = Command::new(program("promtool").unwrap())
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(page.as_bytes()).unwrap();
    drop(input);
    let output: Output = child.wait_with_output().unwrap().into();
    format!("{}{}", output.stdout, output.stderr)
}
