//! Metrics on an address of their own, apart from the API: by the same server, so with its limits.

use std::net::SocketAddr;

use http::request::Parts;

use crate::kinesis::error::ApiError;
use crate::kinesis::server::{
    Api, ApiRequest, ApiResponse, MetricsText, Server, ServerConfig, StartError,
};

/// Serves a text at [`METRICS_PATH`](crate::kinesis::server::METRICS_PATH) from now on, without TLS,
/// to whoever can connect. To be called within a tokio runtime.
///
/// # Errors
/// [`StartError`].
pub fn serve(listen: SocketAddr, text: MetricsText) -> Result<Server, StartError> {
    Server::start(ServerConfig { metrics: Some(text), ..ServerConfig::plain(listen) }, NoApi)
}

/// No operations.
struct NoApi;

impl Api for NoApi {
    fn knows(&self, _: &str) -> bool {
        false
    }

    fn admits(&self, _: &Parts) -> Result<(), ApiError> {
        Ok(())
    }

    async fn call(&self, request: ApiRequest) -> Result<ApiResponse, ApiError> {
        Err(ApiError::unknown_operation(format!("{} is not served here.", request.operation)))
    }
}
