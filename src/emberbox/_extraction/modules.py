"""Modules that a Python block may import: the language's own, those of the image, those that everybody knows.

An answer may well import what no one has: a library that the model made up, or one of the reader's. What is on neither
list counts as unknown, which is a weak sign, since nobody knows all libraries. Names are compared in lower case.
"""

from __future__ import annotations

import sys

from emberbox._extraction.needs import word_set

_STANDARD = frozenset(name.lower() for name in sys.stdlib_module_names) | {"distutils", "imp", "asyncore", "__main__"}
# Much used packages, those of the image among them, under the names by which they are imported.
_WELL_KNOWN = word_set(
    """
    accelerate adafruit aiobotocore aiofiles aiogram aiohappyeyeballs aiohttp aioitertools aiomysql aiosignal
    aiosqlite airflow albumentations alembic alive_progress alpaca_trade_api altair annotated_doc annotated_types
    ansible anthropic antlr4 anyio apscheduler arcade arch argcomplete argon2 argon2_cffi argon2_cffi_bindings
    ariadne arrow arviz arxiv asciimatics ase asgiref asn1crypto astroid astropy asttokens async_timeout asyncpg
    attr attrs authlib autogen awscli awswrangler azure babel backoff backports backtrader barcode bayes_opt bcrypt
    beartype beautifulsoup4 bio biopython bitarray bitcoin bitsandbytes black bleach blessed blinker board bokeh
    boto3 botocore bottle bpy brotli bs4 bson build cachecontrol cachetools caffe2 camelot cantera cartopy cassandra
    catboost category_encoders cattrs ccxt cdsapi celery certifi cffi cfgv cfn_lint cftime chainer chardet
    charset_normalizer cherrypy chess chromadb cirq cleo click clickhouse_driver clingo cloudpickle cohere colorama
    comm comtypes confluent_kafka connexion consul contextily contourpy coolprop corner coverage crashtest crewai
    croniter crypto cryptodome cryptography cupy curio customtkinter cv2 cvxopt cvxpy cx_oracle cycler cyclopts
    cython cytoolz dagster darts dash dask databases databricks_sdk databricks_sql_connector dataclasses_json
    datadog datasets dateparser dateutil dbt deap dearpygui debugpy decorator deep_translator deepdiff defusedxml
    deprecated deprecation detectron2 dgl diffusers dill discord discovery distlib distro django dlib dns dnspython
    docker docstring_parser docutils docx docx2txt dolfin dotenv duckdb dulwich durationpy easyocr editables einops
    elasticsearch email_validator emcee emoji empyrical engineio et_xmlfile eth_account evaluate eventlet
    exceptiongroup execnet executing exifread eyed3 fabric face_recognition factory faiss faker falcon fastai
    fastapi fastjsonschema fastmcp fastuuid fbprophet feast featuretools feedparser fenics ffmpeg ffn filelock
    filterpy fiona firebase_admin fitz flake8 flaml flask flask_cors flask_login flask_sqlalchemy flatbuffers flax
    flet folium fonttools fpdf frappe frozendict frozenlist fsspec ftfy funcy future fuzzywuzzy gcsfs gensim
    geocoder geoip2 geopandas geopy gevent gi git gitdb gitpython glfw gmsh google google_ads google_analytics_admin
    google_api_core google_api_python_client google_auth google_auth_httplib2 google_auth_oauthlib google_crc32c
    google_genai google_resumable_media googleapiclient googleapis_common_protos googletrans gpiozero gql gradio
    graphene graphql_core great_expectations greenlet griffelib groq grpc grpc_google_iam_v1 grpcio
    grpcio_health_checking grpcio_status grpcio_tools gspread gtts gunicorn gym gymnasium h11 h2 h3 h5py haiku halo
    happybase hashids hatchling hdbscan hdfs hf_xet holidays holoviews hpack html5lib httpcore httplib2 httptools
    httpx httpx_sse huggingface_hub humanize hvac hypercorn hyperframe hyperopt hypothesis ibis identify idna ignite
    igraph imageio imblearn imgaug imgui importlib_metadata importlib_resources influxdb_client iniconfig inquirer
    insightface installer instaloader intervaltree invoke ipdb ipykernel ipython ipython_pygments_lexers ipywidgets
    isodate isort itsdangerous jaraco jax jedi jeepney jellyfish jinja2 jiter jmespath joblib joserfc json_logger
    jsonpatch jsonpath_ng jsonpointer jsonref jsonschema jsonschema_path jsonschema_specifications jupyter jwt kafka
    kanren kazoo keras keyboard keyring kfp kivy kivymd kiwisolver kornia kubernetes langchain langchain_community
    langchain_core langchain_openai langdetect langgraph langsmith lark ldap ldap3 levenshtein libcst libpysal
    librosa librt lifelines lightgbm lightning lime line_profiler linkify_it_py litellm litestar
    llama_cloud_services llama_index llama_parse llvmlite loguru luigi lxml lyricsgenius lz4 machine mako markdown
    markdown_it_py markupsafe marshmallow matplotlib matplotlib_inline maya mayavi mccabe mcp mdanalysis
    mdit_py_plugins mdurl mechanize mediapipe memory_profiler mesa meshio metpy mezzanine micropython mimesis mip
    mistralai mistune mlflow mlxtend mmcv mmh3 mne mock moderngl modin momepy mongoengine more_itertools moto motor
    mouse moviepy mpl_toolkits mpmath msal msal_extensions msgpack msrest multidict multipart multiprocess music21
    mutagen mxnet mypy mypy_extensions mysql mysqldb nacl nanoid narwhals nbformat neo4j nest_asyncio netcdf4
    netifaces netmiko networkx neuralprophet nevergrad newrelic newspaper nibabel nicegui nilearn nltk nmap nodeenv
    nose notebook numba numpy oauth2client oauthlib objgraph obspy odoo ollama onnx onnxruntime open3d openai opengl
    openmm openpyxl opensearchpy openssl opentelemetry openvino optax optuna oracledb orjson ortools osmnx packaging
    paddle panda3d pandas pandas_datareader pandas_stubs pandera panel paramiko parso parsy passlib pathable
    pathspec pdbpp pdfminer pdfplumber peewee peft pendulum pennylane pettingzoo pexpect piexif pika pil pillow
    pinecone pint pip pkg_resources pkginfo platformdirs playwright plotly pluggy ply pmdarima poetry poetry_core
    poetry_plugin_export polars pony pptx praw pre_commit prefect prettytable progressbar prometheus_client
    prompt_toolkit propcache prophet proto_plus protobuf psutil psycopg psycopg2 psycopg2_binary psycopg_binary
    ptyprocess pulp pulumi pure_eval py2neo py4j pyarrow pyasn1 pyasn1_modules pyaudio pyautogui pybind11 pychess
    pycodestyle pycparser pycryptodome pycurl pydantic pydantic_ai_slim pydantic_core pydantic_graph
    pydantic_settings pydicom pydub pyeda pyee pyfiglet pyfolio pygad pygame pygithub pyglet pygments pyhdf pyjwt
    pykalman pylab pylint pymatgen pymc pymc3 pymed pymesh pymongo pympler pymssql pymupdf pymysql pynacl pynput
    pyodbc pyomo pyopenssl pyparsing pypdf pypdf2 pyperclip pypfopt pyproj pyproject_hooks pyqt5 pyqt6 pyramid
    pyrsistent pysal pysat pyside2 pyside6 pysimplegui pyspark pystan pyswarms pytesseract pytest pythoncom pytokens
    pytorch_lightning pyttsx3 pytube pytz pyvista pywintypes pyyaml pyzbar pyzmq qdrant_client qiskit qrcode
    quantlib quart questionary qutip rapidfuzz rasterio ray rdkit readability redis referencing regex reportlab
    requests requests_file requests_oauthlib requests_toolbelt rest_framework rfc3339_validator rich rich_rst
    rich_toolkit riskfolio rope rouge_score rpds_py rpi rsa ruamel ruff s3fs s3transfer sacrebleu safetensors sage
    sanic scapy schedule scholarly scikit_learn scipy scrapy seaborn secretstorage segmentation_models_pytorch
    selenium semver sentence_transformers sentencepiece sentry_sdk serial setproctitle setuptools setuptools_scm
    sglang shap shapely shellingham shortuuid simple_term_menu simpleitk simplejson simpy six skimage sklearn skopt
    sktime slack_sdk slugify sly smart_open smbus smmap smolagents sniffio snowflake snowflake_connector_python
    snowflake_snowpark_python snowflake_sqlalchemy socketio solcx sortedcontainers sounddevice soundfile soupsieve
    spacy speech_recognition sphinx spotipy sqlalchemy sqlalchemy_bigquery sqlglot sqlparse sse_starlette
    stable_baselines3 stack_data starlette statsd statsforecast statsmodels strawberry streamlit stripe structlog
    sunpy sympy tables tabula tabulate talib telebot telegram tenacity tensorboard tensorboardx tensorflow tensorrt
    termcolor text_unidecode textblob textual textx tflearn theano thefuzz threadpoolctl tiktoken timm tinycss2
    tinydb toga tokenizers toml tomli tomli_w tomlkit toolz torch torch_geometric torchaudio torchmetrics torchtext
    torchvision tornado tortoise tox tqdm trafilatura traitlets transformers tree_sitter treq trimesh trio triton
    trl troposphere trove_classifiers tsfresh tslearn tweepy twilio twisted typedload typeguard typer
    typing_extensions typing_inspect typing_inspection tzdata tzlocal uc_micro_py ujson ulid ultralytics umap
    uncertainties unidecode unreal unsloth uritemplate urllib3 ursina urwid usb uuid_utils uv uvicorn uvloop vaex
    vcs_versioning vectorbt virtualenv vllm vpython vtk wagtail waitress wandb watchdog watchfiles wcwidth weaviate
    weaviate_client web3 webargs webencodings webob websocket websocket_client websockets werkzeug wheel whisper
    whois wikipedia wikipediaapi win32api win32com win32con win32gui wordcloud workalendar wrapt wsproto wx xarray
    xgboost xlrd xlsxwriter xlwt xmltodict xxhash yaml yarl yaspin ydb yellowbrick yfinance youtube_dl yt_dlp z3
    zarr zipline zipp zmq zodb zstandard
    """
)


def is_known(module: str) -> bool:
    """Whether a module, given by its first name, is one that there is for all that is known here."""
    name = module.lower()
    return name in _STANDARD or name in _WELL_KNOWN or name.startswith("_")
