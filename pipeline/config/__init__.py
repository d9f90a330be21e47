"""The config file: one YAML that names data, backbone, preprocessing, outputs, store and tasks."""
