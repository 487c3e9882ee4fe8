"""The REST door: the Open Inference Protocol over HTTP/1.1, with starlette and uvicorn (the extra `rest`)."""
