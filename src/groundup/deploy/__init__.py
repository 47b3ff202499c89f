"""Taking a service elsewhere: files for Docker, Kubernetes, Prometheus, Grafana, Ray and vLLM."""
