//! What monitoring may see of a daemon: counters, a page of samples, and the listener that serves it.
//! Never changes anything for whoever asks, and never shows a secret, a path, an address, an LSN as a label or the
//! name of a segment or a set. Invariant: nothing here waits for a disk or a peer of the daemon's while it answers.
//!
//! | file | what |
//! |---|---|
//! | [`table`] | every metric there is, one row each |
//! | [`meter`] | counters and histograms of the way of the data |
//! | [`samples`] | values of a cluster, and the page that is made of all |
//! | [`endpoint`] | the listener of its own, `/metrics` and `/healthz` |
//! | [`request`] | the head of a request |
//! | [`refresh`] | looks that cost, at an interval of their own |
//! | [`textfile`] | the same page as a file for node_exporter |

pub(crate) mod endpoint;
pub(crate) mod meter;
pub(crate) mod refresh;
pub(crate) mod request;
pub(crate) mod samples;
pub(crate) mod table;
pub(crate) mod textfile;

pub(crate) use endpoint::{MetricsService, MetricsSource};
pub(crate) use meter::{Counter, Histogram, StoreMeter};
pub(crate) use refresh::{REFRESH_INTERVAL, Refreshes, Subject};
pub(crate) use samples::{MetricsPage, Samples};
pub(crate) use table::Metric;
