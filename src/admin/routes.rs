//! Which path gives what.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::{self, Query};
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router, middleware};
use net::Clock;
use serde::Deserialize;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::collected::{Collected, SERIES, Window, series_name, series_named};
use super::health::health;
use super::hgrm::hgrm;
use super::latency::latency;
use super::metrics::metrics;
use super::page::page;
use super::process::Process;
use super::published::Board;
use super::top::{Top, top};
use super::worst::{Order, ROWS_MAX};

/// How often the snapshots are picked up.
const COLLECT_EVERY: Duration = Duration::from_secs(1);

/// What shards found no longer ago than this need not be looked for again.
const WORST_AGE_NS_MAX: u64 = 1_000_000_000;
/// How long the shards have to look, and how often they are looked after.
const WORST_PATIENCE: Duration = Duration::from_secs(5);
const WORST_LOOK_EVERY: Duration = Duration::from_millis(20);
/// Rows of `/top` when nobody says how many.
const ROWS: usize = 20;

const PATHS: &str = "/, /health, /metrics, /latency, /latency.hgrm, /top and /top.json";

/// What the handlers share. All of them run on the one admin thread.
pub(super) struct State {
    board: Arc<Board>,
    collected: Mutex<Collected>,
}

impl State {
    /// Nothing collected yet.
    pub(super) fn new(board: Arc<Board>) -> Arc<State> {
        let collected = Mutex::new(Collected::new(&board));
        Arc::new(State { board, collected })
    }

    /// Picks up snapshots once a second, whether anybody asks or not: the
    /// intervals must have their length.
    pub(super) async fn collect_for_ever(&self) {
        let mut ticks = interval(COLLECT_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.with_newest(|_, _| ());
        }
    }

    /// Picks up what is new and looks at all of it, with the time of now.
    fn with_newest<T>(&self, look: impl FnOnce(&Collected, u64) -> T) -> T {
        let mut collected = self.collected.lock().unwrap_or_else(PoisonError::into_inner);
        let now_ns = Clock::now().mono_ns;
        collected.collect(&self.board, now_ns);
        look(&collected, now_ns)
    }
}

type Shared = extract::State<Arc<State>>;

/// All paths.
pub(super) fn router(state: Arc<State>) -> Router {
    Router::new()
        .route("/", get(get_page))
        .route("/health", get(get_health))
        .route("/metrics", get(get_metrics))
        .route("/latency", get(get_latency))
        .route("/latency.hgrm", get(get_hgrm))
        .route("/top", get(get_top_table))
        .route("/top.json", get(get_top))
        .fallback(nothing_here)
        .method_not_allowed_fallback(only_get)
        .layer(middleware::map_response(finish))
        .with_state(state)
}

async fn get_page(shared: Shared) -> Html<String> {
    shared.with_newest(|collected, now_ns| {
        let health = health(collected.shards(), now_ns);
        Html(page(&shared.board, collected, &health, now_ns))
    })
}

async fn get_health(shared: Shared) -> impl IntoResponse {
    let health = shared.with_newest(|collected, now_ns| health(collected.shards(), now_ns));
    let status = if health.is_serving { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(health))
}

async fn get_metrics(shared: Shared) -> impl IntoResponse {
    let process = Process::read();
    let text =
        shared.with_newest(|collected, now_ns| metrics(&shared.board, collected, &process, now_ns));
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text)
}

#[derive(Deserialize)]
struct LatencyQuery {
    by: Option<String>,
}

async fn get_latency(shared: Shared, Query(query): Query<LatencyQuery>) -> Response {
    let by_shard = match query.by.as_deref() {
        None => false,
        Some("shard") => true,
        Some(_) => return wrong("by is shard, or left out".to_owned()),
    };
    shared
        .with_newest(|collected, now_ns| Json(latency(collected, by_shard, now_ns)))
        .into_response()
}

#[derive(Deserialize)]
struct HgrmQuery {
    stage: Option<String>,
    window: Option<String>,
}

async fn get_hgrm(shared: Shared, Query(query): Query<HgrmQuery>) -> Response {
    let Some(series) = query.stage.as_deref().and_then(series_named) else {
        let names: Vec<&str> = (0..SERIES).map(series_name).collect();
        return missing(format!("give a stage: ?stage= one of {}", names.join(", ")));
    };
    let window = match query.window.as_deref() {
        None | Some("start") => Window::Start,
        Some("interval") => Window::Interval,
        Some(_) => return wrong("window is start or interval".to_owned()),
    };
    let histogram = shared.with_newest(|collected, _| collected.histogram(series, window, None));
    hgrm(&histogram).into_response()
}

#[derive(Deserialize)]
struct TopQuery {
    by: Option<String>,
    limit: Option<String>,
}

async fn get_top(shared: Shared, Query(query): Query<TopQuery>) -> Response {
    match ask_top(&shared, &query).await {
        Ok(top) => Json(top).into_response(),
        Err(sentence) => wrong(sentence),
    }
}

async fn get_top_table(shared: Shared, Query(query): Query<TopQuery>) -> Response {
    match ask_top(&shared, &query).await {
        Ok(top) => top.table().into_response(),
        Err(sentence) => wrong(sentence),
    }
}

/// Asks the shards and waits for them, not for ever: one that hangs is said to
/// be silent.
async fn ask_top(state: &State, query: &TopQuery) -> Result<Top, String> {
    let by = query.by.as_deref().unwrap_or("unsent");
    let Some(order) = Order::ALL.into_iter().find(|(_, name)| *name == by) else {
        return Err(format!("by is one of {}", Order::ALL.map(|(_, name)| name).join(", ")));
    };
    let limit = query.limit.as_deref().map_or(Ok(ROWS), str::parse);
    let Ok(limit @ 1..=ROWS_MAX) = limit else {
        return Err(format!("limit is a number from 1 to {ROWS_MAX}"));
    };
    let since_ns = Clock::now().mono_ns.saturating_sub(WORST_AGE_NS_MAX);
    let deadline = Instant::now() + WORST_PATIENCE;
    let mut is_asked = false;
    loop {
        let found = state.board.worst_since(since_ns);
        let is_whole = found.iter().all(Option::is_some);
        if is_whole || Instant::now() >= deadline {
            return Ok(top(&found, order, limit, Clock::now().mono_ns));
        }
        if !std::mem::replace(&mut is_asked, true) {
            state.board.asked().fetch_add(1, Ordering::Relaxed);
        }
        sleep(WORST_LOOK_EVERY).await;
    }
}

async fn nothing_here(uri: Uri) -> Response {
    missing(format!("there is no {}; there are {PATHS}", uri.path()))
}

async fn only_get(method: Method) -> impl IntoResponse {
    let sentence = format!("{method} does nothing here: only GET and HEAD\n");
    (StatusCode::METHOD_NOT_ALLOWED, [(header::ALLOW, "GET, HEAD")], sentence)
}

fn missing(sentence: String) -> Response {
    (StatusCode::NOT_FOUND, sentence + "\n").into_response()
}

fn wrong(sentence: String) -> Response {
    (StatusCode::BAD_REQUEST, sentence + "\n").into_response()
}

/// One request for each connection, which therefore can have one deadline for
/// everything; and no answer is worth keeping.
async fn finish(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
