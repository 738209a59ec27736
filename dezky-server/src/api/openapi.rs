use axum::http::header;
use axum::response::IntoResponse;

/// `GET /openapi.json`: what there is, for programs.
pub(crate) async fn openapi() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], include_str!("../../openapi.json"))
}
